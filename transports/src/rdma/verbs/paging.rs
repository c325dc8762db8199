//! Whether a device can use memory that is not pinned, and fetch its pages when it needs them.

use std::io;
use std::mem::offset_of;

use rdma_sys::{
    ibv_context, ibv_device_attr_ex, ibv_odp_caps, ibv_odp_general_caps,
    ibv_odp_transport_cap_bits, verbs_context,
};

use super::Device;

/// What `abi_compat` holds where the context is the last member of a `verbs_context`
/// (`__VERBS_ABI_IS_EXTENDED`, verbs.h).
const EXTENDED: usize = usize::MAX;

/// The extended context that a context is part of, if it is, and if it reaches back to a member at
/// `offset` (`verbs_get_ctx_op`, verbs.h: it grows at its front, and says how long it is).
///
/// # Safety
///
/// The context is open.
unsafe fn extended(context: *mut ibv_context, offset: usize) -> Option<*mut verbs_context> {
    // SAFETY: it is open, says the caller.
    let mark = unsafe { (*context).abi_compat };
    if mark as usize != EXTENDED {
        return None;
    }
    let extended: *mut verbs_context = context
        .wrapping_byte_sub(offset_of!(verbs_context, context))
        .cast();
    // SAFETY: the mark says that the context is the member of that name of a `verbs_context`, of
    // which the part from `sz` on is there in every version.
    let length = unsafe { (*extended).sz };
    (length >= size_of::<verbs_context>() - offset).then_some(extended)
}

/// What is missing for writes out of memory that is not pinned, over a reliable connection.
fn missing(capabilities: &ibv_odp_caps) -> Option<&'static str> {
    let general = ibv_odp_general_caps::IBV_ODP_SUPPORT.0;
    let write = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_WRITE.0;
    if capabilities.general_caps & u64::from(general) == 0 {
        return Some("it has none");
    }
    if capabilities.per_transport_caps.rc_odp_caps & write == 0 {
        return Some("it has it, and not for RDMA writes over a reliable connection");
    }
    None
}

impl Device {
    /// What the device lacks for RDMA writes out of memory that is paged on demand
    /// (ibv_query_device_ex(3), `odp_caps`); `None` when it lacks nothing.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn lacks_for_paging(&self) -> io::Result<Option<&'static str>> {
        let offset = offset_of!(verbs_context, query_device_ex);
        // SAFETY: the context is open as long as `self` lives.
        let extended = unsafe { extended(self.context(), offset) };
        // SAFETY: it is there, and its length says that it has this member.
        let query = extended.and_then(|extended| unsafe { (*extended).query_device_ex });
        let Some(query) = query else {
            return Ok(Some("its driver does not say that it has any"));
        };
        // SAFETY: all zero is a valid `ibv_device_attr_ex`: integers throughout.
        let mut raw: ibv_device_attr_ex = unsafe { std::mem::zeroed() };
        let length = size_of::<ibv_device_attr_ex>();
        // SAFETY: the context is open, no input means none of its options, and `raw` is a place of
        // that length for the answer.
        let result = unsafe { query(self.context(), std::ptr::null(), &raw mut raw, length) };
        match result {
            libc::EOPNOTSUPP | libc::ENOSYS => Ok(Some("its driver does not say that it has any")),
            result => {
                super::check_returned(result)?;
                Ok(missing(&raw.odp_caps))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_over_a_reliable_connection_are_what_counts() {
        for (general_caps, rc_odp_caps, expected) in [
            (0, 0, Some("it has none")),
            (2, 4, Some("it has none")),
            (1, 0, Some("not for RDMA writes")),
            (3, 1 | 2 | 8, Some("not for RDMA writes")),
            (1, 4, None),
            (3, 31, None),
        ] {
            // SAFETY: all zero is a valid `ibv_odp_caps`: integers throughout.
            let mut capabilities: ibv_odp_caps = unsafe { std::mem::zeroed() };
            capabilities.general_caps = general_caps;
            capabilities.per_transport_caps.rc_odp_caps = rc_odp_caps;
            // Those of other connections are of no use.
            capabilities.per_transport_caps.uc_odp_caps = 31;
            capabilities.per_transport_caps.ud_odp_caps = 31;
            let found = missing(&capabilities);
            let is_as_expected = match (found, expected) {
                (Some(found), Some(expected)) => found.contains(expected),
                (found, expected) => found == expected,
            };
            assert!(is_as_expected, "{general_caps} {rc_odp_caps}: {found:?}");
        }
    }
}
