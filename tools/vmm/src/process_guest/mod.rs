//! Threads of this process that run the workload.
