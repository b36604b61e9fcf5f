//! The registry under real clients.
