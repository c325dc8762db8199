//! Dirty tracking and vCPU/VM state of KVM guests.
