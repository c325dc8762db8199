//! `dunlin doctor`
