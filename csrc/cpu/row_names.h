/* row_names.h: the words of a row template, from ISA, D and A; included at the top of one,
 * row_names_end.h at its end. */
#define NAME(base) GNN_GLUE3(base, ISA, D)
#define NAME_A(base) GNN_GLUE3(base, ISA, A)
#define TARGET GNN_GLUE2(TARGET, ISA)
#define T GNN_GLUE2(store, D)
#define ACC GNN_GLUE2(acc, D)
#define VEC GNN_GLUE3(vec, ISA, D)
#define LANES GNN_GLUE3(LANES, ISA, D)
#define INLINE TARGET static inline __attribute__((always_inline))
#define OUTLINE TARGET static __attribute__((noinline, unused))
