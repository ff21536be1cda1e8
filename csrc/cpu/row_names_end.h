/* row_names_end.h: the end of a row template. */
#undef NAME
#undef NAME_A
#undef TARGET
#undef T
#undef ACC
#undef VEC
#undef LANES
#undef INLINE
#undef OUTLINE
#undef ISA
#undef D
#undef A
