//! Devices: opening them, what they can do, their ports and addresses.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rdma_sys::{
    ibv_context, ibv_device, ibv_device_attr, ibv_gid, ibv_port_attr, ibv_port_state,
    ibv_transport_type,
};

use super::event::{DeviceEvent, RawDeviceEvent};
use super::{Libraries, check_returned, set_nonblocking};
use crate::rdma::LinkLayer;
use crate::rdma::error::RdmaError;

/// `IBV_LINK_LAYER_ETHERNET` (verbs.h). 1 is InfiniBand, and so is 0, of devices from before there
/// was another.
const LINK_LAYER_ETHERNET: u8 = 2;

/// Who makes a connection of a device's queue pairs, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum DeviceKind {
    /// InfiniBand and RoCE: this side moves a queue pair from state to state, by attributes that
    /// rdma_cm knows, and names the peer's queue pair and address in them.
    InfiniBand,
    /// iWARP: a TCP connection. The kernel moves the queue pair when it connects or accepts, and
    /// there are no attributes.
    Iwarp,
}

impl DeviceKind {
    /// The kind that the library says; `None` for those that lanes can't use.
    fn of(transport: ibv_transport_type::Type) -> Option<Self> {
        match transport {
            ibv_transport_type::IBV_TRANSPORT_IB => Some(Self::InfiniBand),
            ibv_transport_type::IBV_TRANSPORT_IWARP => Some(Self::Iwarp),
            _ => None,
        }
    }
}

/// What a device can do, as far as lanes ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::rdma) struct DeviceLimits {
    /// The longest registration, in bytes.
    pub(in crate::rdma) registration_bytes_max: u64,
    /// How many registrations there may be.
    pub(in crate::rdma) registrations_max: u32,
    /// How many requests a queue may hold.
    pub(in crate::rdma) requests_max: u32,
    /// How many entries a completion queue may have.
    pub(in crate::rdma) completions_max: u32,
    /// How many reads from the peer a queue pair may have under way.
    pub(in crate::rdma) reads_out_max: u8,
    /// How many reads of the peer's it may answer at a time.
    pub(in crate::rdma) reads_in_max: u8,
    /// How many ports it has.
    pub(in crate::rdma) ports: u8,
    /// Whether it is rxe, and which.
    pub(in crate::rdma) rxe: Option<Rxe>,
}

/// Linux's RoCE in software, by how it bears much under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum Rxe {
    /// It was seen to repeat what had arrived (Linux 6.1), or was never tried.
    Repeats,
    /// It does well (Linux 6.12).
    BearsMuch,
}

impl Rxe {
    /// That of a kernel whose release begins like `6.12`. Releases between those that were tried count
    /// as the worse one.
    fn of_release(release: &str) -> Self {
        let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
        match (next(), next()) {
            (Some(major), Some(minor)) if (major, minor) >= (6, 12) => Self::BearsMuch,
            _ => Self::Repeats,
        }
    }
}

/// What rxe says instead of a vendor's number: one that no vendor has (`RXE_VENDOR_ID`,
/// `rxe_param.h`).
const RXE_VENDOR: u32 = 0xff_ffff;

/// A port as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) struct PortState {
    /// Whether it carries traffic.
    pub(in crate::rdma) is_active: bool,
    /// The largest path MTU that its link carries now, as `enum ibv_mtu` counts: 1 is 256 bytes, 5
    /// is 4096.
    pub(in crate::rdma) path_mtu: u32,
    /// How many entries its table of addresses has, used or not.
    pub(in crate::rdma) global_ids: u32,
    /// What its link is.
    pub(in crate::rdma) link_layer: LinkLayer,
    /// Its LID on an InfiniBand subnet, and how many low bits of it are free to tell paths apart.
    pub(in crate::rdma) local_id: u16,
    pub(in crate::rdma) path_bits: u8,
}

impl PortState {
    /// The address that is known by the LID with these low bits.
    pub(in crate::rdma) fn local_address(&self, bits: u8) -> GlobalId {
        let mask = 1_u16.checked_shl(self.path_bits.into()).unwrap_or(0);
        let mask = mask.wrapping_sub(1);
        GlobalId::of_local((self.local_id & !mask) | (u16::from(bits) & mask))
    }
}

/// A port's address on the fabric (a GID); for RoCE an IPv6 address or a mapped IPv4 address, for
/// iWARP its interface's hardware address and no more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::rdma) struct GlobalId(pub(in crate::rdma) [u8; 16]);

impl GlobalId {
    /// Stands for a LID. No GID is like it: a GID begins with a prefix that is not zero.
    pub(in crate::rdma) fn of_local(local_id: u16) -> Self {
        let mut bytes = [0; 16];
        if let Some(end) = bytes.last_chunk_mut() {
            *end = local_id.to_be_bytes();
        }
        Self(bytes)
    }
}

impl fmt::Debug for GlobalId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv6Addr::from(self.0), formatter)
    }
}

/// An open device.
pub(in crate::rdma) struct Device {
    context: *mut ibv_context,
    pub(super) libraries: &'static Libraries,
    name: String,
    kind: DeviceKind,
    limits: DeviceLimits,
}

// SAFETY: law 7: the context may be used from any thread; it is closed by the last owner.
unsafe impl Send for Device {}
// SAFETY: as for `Send`.
unsafe impl Sync for Device {}

/// The list of this host's devices, freed when dropped.
struct DeviceList {
    list: *mut *mut ibv_device,
    length: usize,
    libraries: &'static Libraries,
}

impl DeviceList {
    fn new(libraries: &'static Libraries) -> Result<Self, RdmaError> {
        let mut length = 0;
        // SAFETY: `length` is a place for the answer.
        let list = unsafe { (libraries.verbs.ibv_get_device_list)(&raw mut length) };
        if list.is_null() {
            return Err(RdmaError::Devices(io::Error::last_os_error()));
        }
        Ok(Self {
            list,
            length: usize::try_from(length).unwrap_or(0),
            libraries,
        })
    }

    fn devices(&self) -> impl Iterator<Item = (String, *mut ibv_device)> {
        (0..self.length).filter_map(|index| {
            // SAFETY: the list has `length` entries and lives as long as `self`.
            let device = unsafe { self.list.add(index).read() };
            // SAFETY: an entry of the list is null or a device that lives as long as the list.
            let name = unsafe { device.as_ref() }.map(|device| text(&device.name))?;
            Some((name, device))
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from `ibv_get_device_list`, and nothing refers to it any more.
        unsafe { (self.libraries.verbs.ibv_free_device_list)(self.list) };
    }
}

/// A name in a fixed array, up to its first zero byte.
pub(super) fn text(name: &[c_char]) -> String {
    let bytes: Vec<u8> = name.iter().map(|byte| byte.cast_unsigned()).collect();
    match CStr::from_bytes_until_nul(&bytes) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

impl Device {
    /// The names of this host's devices, sorted.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub(in crate::rdma) fn names(libraries: &'static Libraries) -> Result<Vec<String>, RdmaError> {
        let list = DeviceList::new(libraries)?;
        let mut names: Vec<String> = list.devices().map(|(name, _)| name).collect();
        // The system has them in the order in which it came across them.
        names.sort();
        Ok(names)
    }

    /// Opens the device of that name.
    ///
    /// # Errors
    ///
    /// When there is none, it can't be opened, or it is of a kind that lanes can't use.
    pub(in crate::rdma) fn open(
        libraries: &'static Libraries,
        name: &str,
    ) -> Result<Arc<Self>, RdmaError> {
        let list = DeviceList::new(libraries)?;
        let device = list.devices().find(|(found, _)| found == name);
        let Some((name, device)) = device else {
            return Err(RdmaError::NoSuchDevice {
                wanted: name.to_owned(),
                present: list.devices().map(|(name, _)| name).collect(),
            });
        };
        // SAFETY: `device` is an entry of `list`, which lives until the end of this function.
        let transport = unsafe { (*device).transport_type };
        let Some(kind) = DeviceKind::of(transport) else {
            return Err(RdmaError::DeviceKind { device: name });
        };
        let failed = |doing| {
            let device = name.clone();
            move |source| RdmaError::Device {
                device,
                doing,
                source,
            }
        };
        // SAFETY: as above; an open context stays good when the list is freed (ibv_open_device(3)).
        let context = unsafe { (libraries.verbs.ibv_open_device)(device) };
        if context.is_null() {
            return Err(failed("opening it")(io::Error::last_os_error()));
        }
        let mut opened = Self {
            context,
            libraries,
            name: name.clone(),
            kind,
            limits: DeviceLimits::default(),
        };
        opened.check_operations().map_err(failed("opening it"))?;
        opened.limits = opened
            .query_limits()
            .map_err(failed("asking for its limits"))?;
        set_nonblocking(opened.events())
            .map_err(failed("setting its descriptor to not blocking"))?;
        Ok(Arc::new(opened))
    }

    /// Sees to it that the data path's functions, called through the context, are there.
    fn check_operations(&self) -> io::Result<()> {
        // SAFETY: the context is open, and `ops` is filled in by `ibv_open_device`.
        let operations = unsafe { &(*self.context).ops };
        let complete = operations.post_send.is_some()
            && operations.post_recv.is_some()
            && operations.poll_cq.is_some()
            && operations.req_notify_cq.is_some();
        if complete {
            return Ok(());
        }
        Err(io::Error::other("its driver lacks functions"))
    }

    fn query_limits(&self) -> io::Result<DeviceLimits> {
        // SAFETY: all zero is a valid `ibv_device_attr`: integers throughout.
        let mut raw: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open and `raw` is a place for the answer.
        let result = unsafe { (self.libraries.verbs.ibv_query_device)(self.context, &raw mut raw) };
        check_returned(result)?;
        let count = |number: i32| u32::try_from(number).unwrap_or(0);
        let depth = |number: i32| u8::try_from(number.clamp(0, 255)).unwrap_or(0);
        Ok(DeviceLimits {
            registration_bytes_max: raw.max_mr_size,
            registrations_max: count(raw.max_mr),
            requests_max: count(raw.max_qp_wr),
            completions_max: count(raw.max_cqe),
            reads_out_max: depth(raw.max_qp_init_rd_atom),
            reads_in_max: depth(raw.max_qp_rd_atom),
            ports: raw.phys_port_cnt,
            rxe: (raw.vendor_id == RXE_VENDOR).then(|| {
                let system = rustix::system::uname();
                Rxe::of_release(&system.release().to_string_lossy())
            }),
        })
    }

    /// The device's name, like `mlx5_0`.
    pub(in crate::rdma) fn name(&self) -> &str {
        &self.name
    }

    /// Of which kind it is.
    pub(in crate::rdma) fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// What it can do.
    pub(in crate::rdma) fn limits(&self) -> DeviceLimits {
        self.limits
    }

    pub(super) fn context(&self) -> *mut ibv_context {
        self.context
    }

    /// How a port is now.
    ///
    /// # Errors
    ///
    /// The system's, also where there is no such port.
    pub(in crate::rdma) fn port(&self, number: u8) -> Result<PortState, RdmaError> {
        // SAFETY: all zero is a valid `ibv_port_attr`: integers throughout.
        let mut raw: ibv_port_attr = unsafe { std::mem::zeroed() };
        // The function writes the attributes of its first version, which `ibv_port_attr` begins
        // with; it has all that is read here.
        // SAFETY: the context is open and `raw` is a place for the answer, and larger than it.
        let result =
            unsafe { (self.libraries.verbs.ibv_query_port)(self.context, number, &raw mut raw) };
        check_returned(result).map_err(|source| RdmaError::Device {
            device: self.name.clone(),
            doing: "asking for a port's state",
            source,
        })?;
        Ok(PortState {
            is_active: raw.state == ibv_port_state::IBV_PORT_ACTIVE,
            path_mtu: raw.active_mtu,
            global_ids: u32::try_from(raw.gid_tbl_len).unwrap_or(0),
            link_layer: match (self.kind, raw.link_layer) {
                (DeviceKind::Iwarp, _) => LinkLayer::Iwarp,
                (DeviceKind::InfiniBand, LINK_LAYER_ETHERNET) => LinkLayer::Ethernet,
                (DeviceKind::InfiniBand, _) => LinkLayer::InfiniBand,
            },
            local_id: raw.lid,
            path_bits: raw.lmc,
        })
    }

    /// An entry of a port's table of addresses.
    ///
    /// # Errors
    ///
    /// The system's, also where there is no such entry.
    pub(in crate::rdma) fn global_id(&self, port: u8, index: u8) -> Result<GlobalId, RdmaError> {
        let mut raw = ibv_gid { raw: [0; 16] };
        // SAFETY: the context is open and `raw` is a place for the answer.
        let result = unsafe {
            (self.libraries.verbs.ibv_query_gid)(self.context, port, index.into(), &raw mut raw)
        };
        check_returned(result).map_err(|source| RdmaError::Device {
            device: self.name.clone(),
            doing: "asking for an address of a port",
            source,
        })?;
        // SAFETY: both members of the union are 16 bytes without padding, all of them initialised.
        Ok(GlobalId(unsafe { raw.raw }))
    }

    /// Readable when [`Device::take_event`] has something to say.
    pub(in crate::rdma) fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the context, which is open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw((*self.context).async_fd) }
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    ///
    /// When the system fails to tell.
    pub(in crate::rdma) fn take_event(&self) -> io::Result<Option<DeviceEvent>> {
        let mut raw = RawDeviceEvent {
            element: 0,
            kind: 0,
        };
        // SAFETY: the context is open and `raw`, of the size and shape of an event, is a place for
        // the answer. The call does not wait: the descriptor is nonblocking.
        let result =
            unsafe { (self.libraries.verbs.ibv_get_async_event)(self.context, &raw mut raw) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        let event = DeviceEvent::from_raw(&raw);
        // SAFETY: the event was just taken; the queue that it may name can't be gone, because
        // destroying it waits for this acknowledgement.
        unsafe { (self.libraries.verbs.ibv_ack_async_event)(&raw mut raw) };
        Ok(Some(event))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: law 3: whatever was made from the context held this value and is gone.
        unsafe { (self.libraries.verbs.ibv_close_device)(self.context) };
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Device({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rxe_bears_much_in_releases_that_were_tried() {
        for (release, expected) in [
            ("6.1.0-41-amd64", Rxe::Repeats),
            ("6.11.9", Rxe::Repeats),
            ("6.12.95+deb12-amd64", Rxe::BearsMuch),
            ("6.18", Rxe::BearsMuch),
            ("7.0.0-rc1", Rxe::BearsMuch),
            ("7-rc1", Rxe::Repeats),
            ("", Rxe::Repeats),
            ("99999999999.1", Rxe::Repeats),
        ] {
            assert_eq!(Rxe::of_release(release), expected, "{release}");
        }
    }
}
