//! The functions of libibverbs and librdmacm, looked up at run time.
//!
//! A program that links the two does not start on a host without them. So only types, and functions
//! that are code of the bindings (they call through pointers inside of a device's context), come
//! from `rdma-sys` at build time; each function named here is found when the first device is looked
//! for. One direct call of an `rdma_sys` extern function would bring the link-time need back:
//! `tools/check-needed.sh` looks for it.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;
use rdma_sys::{
    ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid, ibv_mr, ibv_pd,
    ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_init_attr, rdma_cm_event, rdma_cm_id,
    rdma_conn_param, rdma_event_channel, rdma_port_space,
};

use super::event::RawDeviceEvent;
use crate::rdma::error::RdmaError;

/// Declares a table of a library's functions, and how to fill it.
macro_rules! functions {
    (
        $(#[$meta:meta])*
        $table:ident of $file:literal in package $package:literal {
            $($name:ident($($argument:ty),*) $(-> $result:ty)?;)*
        }
    ) => {
        $(#[$meta])*
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            fn load() -> Result<Self, RdmaError> {
                let missing = |source| RdmaError::NoLibrary {
                    library: $file,
                    package: $package,
                    source,
                };
                // SAFETY: the library's initialisers are those of rdma-core, which may run at any
                // time on any thread; they set up tables of their own.
                let library = unsafe { Library::new($file) }.map_err(missing)?;
                let table = Self {
                    $($name: {
                        let symbol = concat!(stringify!($name), "\0").as_bytes();
                        // SAFETY: the type is that of the function's declaration in rdma-core's
                        // headers, with its arguments in their order.
                        *unsafe { library.get(symbol) }.map_err(|source| {
                            RdmaError::NoFunction {
                                function: stringify!($name),
                                library: $file,
                                package: $package,
                                source,
                            }
                        })?
                    },)*
                };
                // The pointers above point into it, and it keeps threads' and devices' state: it
                // stays for as long as the process.
                std::mem::forget(library);
                Ok(table)
            }
        }
    };
}

functions! {
    /// libibverbs: devices and what belongs to them.
    Verbs of "libibverbs.so.1" in package "libibverbs1" {
        ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        ibv_free_device_list(*mut *mut ibv_device);
        ibv_open_device(*mut ibv_device) -> *mut ibv_context;
        ibv_close_device(*mut ibv_context) -> c_int;
        ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        ibv_query_port(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
        ibv_query_gid(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
        ibv_get_async_event(*mut ibv_context, *mut RawDeviceEvent) -> c_int;
        ibv_ack_async_event(*mut RawDeviceEvent);
        ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
        ibv_dealloc_pd(*mut ibv_pd) -> c_int;
        ibv_reg_mr_iova2(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;
        ibv_dereg_mr(*mut ibv_mr) -> c_int;
        ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
        ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
        ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int)
            -> *mut ibv_cq;
        ibv_destroy_cq(*mut ibv_cq) -> c_int;
        ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events(*mut ibv_cq, c_uint);
        ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        ibv_destroy_qp(*mut ibv_qp) -> c_int;
    }
}

functions! {
    /// librdmacm: connections between queue pairs, by IP address.
    ConnectionManager of "librdmacm.so.1" in package "librdmacm1" {
        rdma_create_event_channel() -> *mut rdma_event_channel;
        rdma_destroy_event_channel(*mut rdma_event_channel);
        rdma_create_id(
            *mut rdma_event_channel,
            *mut *mut rdma_cm_id,
            *mut c_void,
            rdma_port_space::Type
        ) -> c_int;
        rdma_destroy_id(*mut rdma_cm_id) -> c_int;
        rdma_bind_addr(*mut rdma_cm_id, *mut libc::sockaddr) -> c_int;
        rdma_resolve_addr(*mut rdma_cm_id, *mut libc::sockaddr, *mut libc::sockaddr, c_int)
            -> c_int;
        rdma_resolve_route(*mut rdma_cm_id, c_int) -> c_int;
        rdma_set_option(*mut rdma_cm_id, c_int, c_int, *mut c_void, usize) -> c_int;
        rdma_init_qp_attr(*mut rdma_cm_id, *mut ibv_qp_attr, *mut c_int) -> c_int;
        rdma_connect(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_establish(*mut rdma_cm_id) -> c_int;
        rdma_listen(*mut rdma_cm_id, c_int) -> c_int;
        rdma_accept(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_reject(*mut rdma_cm_id, *const c_void, u8) -> c_int;
        rdma_disconnect(*mut rdma_cm_id) -> c_int;
        rdma_migrate_id(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
        rdma_get_cm_event(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        rdma_ack_cm_event(*mut rdma_cm_event) -> c_int;
        rdma_get_src_port(*mut rdma_cm_id) -> u16;
        rdma_event_str(c_uint) -> *const c_char;
    }
}

/// Both libraries.
pub(in crate::rdma) struct Libraries {
    pub(super) verbs: Verbs,
    pub(super) connection_manager: ConnectionManager,
}

static LOADED: OnceLock<Libraries> = OnceLock::new();

impl Libraries {
    /// Finds both libraries and all functions of theirs that are called, once in the process's
    /// life.
    ///
    /// # Errors
    ///
    /// The library or function that is missing, and the package that has it. A later call looks
    /// again.
    pub(in crate::rdma) fn load() -> Result<&'static Self, RdmaError> {
        static LOADING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded);
        }
        let verbs = Verbs::load()?;
        let connection_manager = ConnectionManager::load()?;
        Ok(LOADED.get_or_init(|| Self {
            verbs,
            connection_manager,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    functions! {
        /// A library that no host has.
        #[allow(dead_code, reason = "it never comes to be")]
        Absent of "libdunlin-absent.so.9" in package "libdunlin-absent9" {
            ibv_absent() -> c_int;
        }
    }

    functions! {
        /// The C library, which has no verbs.
        #[allow(dead_code, reason = "it never comes to be")]
        WithoutVerbs of "libc.so.6" in package "libc6" {
            ibv_absent() -> c_int;
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = Absent::load().err().unwrap().to_string();
        assert!(error.contains("libdunlin-absent.so.9"), "{error}");
        assert!(error.contains("the package libdunlin-absent9"), "{error}");
        let error = WithoutVerbs::load().err().unwrap().to_string();
        assert!(error.contains("libc.so.6 has no ibv_absent"), "{error}");
        assert!(error.contains("libc6"), "{error}");
    }

    #[test]
    fn where_the_libraries_are_all_functions_are_found() {
        match Libraries::load() {
            Ok(_) => {}
            Err(error @ RdmaError::NoLibrary { .. }) => println!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}
