//! The daemon's composition root: starts, wires and stops the rest.
