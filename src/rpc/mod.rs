//! tarpc services, framing, connections. Knows nothing of what messages mean.
