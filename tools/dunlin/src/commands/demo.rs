//! `dunlin demo`
