"""The recurrence and its gradient as loops that numba compiles."""
