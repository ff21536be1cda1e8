/* mutants.h: places where one known mistake can be compiled in, to test the tests.
 *
 *   GNN_MUTANT(name, right, wrong)     `right`, unless GNN_MUTANT_<name> is defined as 1
 *
 * tests/mutants/mutants.toml lists every name with a test that must fail under it;
 * `make mutants` builds them one at a time. Either text may be empty, neither may hold a
 * comma outside parentheses. The product never defines a name, so it never holds a `wrong`.
 */
#ifndef GNN_MUTANTS_H
#define GNN_MUTANTS_H

#define GNN_MUTANT(name, right, wrong) GNN_MUTANT_IF(GNN_MUTANT_##name, right, wrong)
#define GNN_MUTANT_IF(set, right, wrong) GNN_MUTANT_PICK(set, right, wrong)
#define GNN_MUTANT_PICK(set, right, wrong)                                             \
    GNN_MUTANT_SPREAD(GNN_MUTANT_SKIP_##set wrong, right, )
#define GNN_MUTANT_SKIP_1 , // pushes `wrong` into the second place
#define GNN_MUTANT_SPREAD(...) GNN_MUTANT_SECOND(__VA_ARGS__)
#define GNN_MUTANT_SECOND(first, second, ...) second

#endif
