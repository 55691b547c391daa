//! The control plane: control store, leases, scheduler, failover. Knows nothing of I/O.
