//! Dirty tracking of a process's own memory.
