//! The Kubernetes API as a source.

pub mod kinds;
