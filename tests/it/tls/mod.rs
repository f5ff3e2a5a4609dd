//! Encrypted connections to real servers.

mod callers_config;
mod cancels;
mod certificates;
mod fallback;
mod modes;

/// The first major version that understands TLS without being asked for it, and whose libpq does.
const DIRECT_TLS: u32 = 17;
