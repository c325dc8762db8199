//! A KVM virtual machine that runs the workload.
