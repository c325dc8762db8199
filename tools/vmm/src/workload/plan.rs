//! Where in guest memory everything lies.
//!
//! ```text
//! 0x0000_1000  code of a KVM guest              ┐
//! 0x0001_0000  control pages, one for each vCPU │ the system area
//! 0x0020_0000  page tables of a KVM guest       ┘
//! 0x0080_0000  the vCPUs' hot ranges, one behind the other; one that does not fit into what is
//!              left of a region starts at the next region's first page
//! …            all else: fixed pages, which nobody writes again
//! ```

use dunlin_engine::layout::{GuestAddress, Layout};
use dunlin_transports::memory::{PAGE_BYTES, PageNumber};
use thiserror::Error;

use super::{Pattern, Workload, WorkloadError};
use crate::memory::{HIGH_MEMORY, LOW_MEMORY_END};
use crate::size::format_size;
use crate::spec::VCPUS_MAX;

/// Where a KVM guest's code lies.
pub const CODE_ADDRESS: GuestAddress = GuestAddress(0x1000);

/// Where the first vCPU's control page lies; the others follow, a page each.
pub const CONTROL_PAGES_ADDRESS: GuestAddress = GuestAddress(0x1_0000);

/// Where a KVM guest's page tables begin.
pub const PAGE_TABLES_ADDRESS: GuestAddress = GuestAddress(0x20_0000);

/// How long the system area is, from address 0 on: the page tables' 6 MiB map far more memory with
/// 2 MiB entries than a layout may have.
pub const SYSTEM_AREA_BYTES: u64 = 8 << 20;

/// The pages that one vCPU rewrites: contiguous in guest-physical memory and inside one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotRange {
    /// The first page's address.
    pub base: GuestAddress,
    /// How many pages; may be none.
    pub pages: u64,
}

impl HotRange {
    /// The address behind the last page.
    fn end(self) -> u64 {
        self.base.0 + self.pages * PAGE_BYTES
    }
}

/// What a page is for, and so how it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageClass {
    /// In the system area, and no control page in use. Does not change once the guest runs.
    System,
    /// The control page of a vCPU.
    Control(u32),
    /// In the hot range of a vCPU.
    Hot(u32),
    /// Never written after the guest was made.
    Fixed,
}

/// Why a workload can't be laid out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The workload is not valid in itself.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs: the built-in guest has 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    /// There is no room for the system area.
    #[error(
        "the built-in guest needs {} of memory from address 0 on; give it at least that",
        format_size(SYSTEM_AREA_BYTES)
    )]
    NoSystemArea,
    /// The hot set does not fit.
    #[error(
        "a hot set of {} for {vcpus} vCPUs does not fit into {} of memory: at most {} fit, \
         or give the guest {} of memory",
        format_size(*hot_bytes), format_size(*memory_bytes), format_size(*fits_bytes), format_size(*needs_bytes)
    )]
    HotSetTooLarge {
        /// How large the hot set was to be.
        hot_bytes: u64,
        /// Among how many vCPUs it is split.
        vcpus: u32,
        /// How much memory there is.
        memory_bytes: u64,
        /// The most that fits.
        fits_bytes: u64,
        /// The smallest memory that the hot set fits into.
        needs_bytes: u64,
    },
}

/// Where in a layout everything of a workload lies. The same layout, number of vCPUs and workload
/// make the same plan on both sides of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    layout: Layout,
    hot_ranges: Vec<HotRange>,
    /// Whether any page outside of the system area may be rewritten, whatever the ranges are.
    replays: bool,
}

impl Plan {
    /// Lays a workload out.
    ///
    /// # Errors
    ///
    /// See [`PlanError`].
    pub fn new(layout: &Layout, vcpus: u32, workload: &Workload) -> Result<Self, PlanError> {
        workload.validate()?;
        if vcpus == 0 || vcpus > VCPUS_MAX {
            return Err(PlanError::Vcpus(vcpus));
        }
        let has_system_area = layout
            .regions()
            .first()
            .is_some_and(|region| region.address.0 == 0 && region.bytes >= SYSTEM_AREA_BYTES);
        if !has_system_area {
            return Err(PlanError::NoSystemArea);
        }
        let room = room(layout);
        let hot_pages = workload.hot_bytes / PAGE_BYTES;
        let Some(hot_ranges) = place(&room, vcpus, hot_pages) else {
            return Err(PlanError::HotSetTooLarge {
                hot_bytes: workload.hot_bytes,
                vcpus,
                memory_bytes: layout.bytes(),
                fits_bytes: most_that_fits(&room, vcpus, hot_pages),
                needs_bytes: smallest_memory(layout, vcpus, hot_pages),
            });
        };
        Ok(Self {
            layout: layout.clone(),
            hot_ranges,
            replays: workload.pattern == Pattern::Replay,
        })
    }

    /// The layout that it was made for.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u32 {
        // `new` took no more than VCPUS_MAX.
        self.hot_ranges.len() as u32
    }

    /// Where the control page of a vCPU lies; `None` when there is no such vCPU.
    pub fn control_page(&self, vcpu: u32) -> Option<GuestAddress> {
        (vcpu < self.vcpus())
            .then(|| GuestAddress(CONTROL_PAGES_ADDRESS.0 + u64::from(vcpu) * PAGE_BYTES))
    }

    /// The control pages' numbers, in vCPU order.
    pub fn control_page_numbers(&self) -> Vec<PageNumber> {
        (0..self.vcpus())
            .filter_map(|vcpu| self.layout.page_of(self.control_page(vcpu)?))
            .collect()
    }

    /// The pages that a vCPU rewrites; `None` when there is no such vCPU.
    pub fn hot_range(&self, vcpu: u32) -> Option<HotRange> {
        self.hot_ranges.get(vcpu as usize).copied()
    }

    /// The guest-physical address of a page; `None` when the page is in no region.
    pub fn address_of(&self, page: PageNumber) -> Option<GuestAddress> {
        let (region, in_region) = self.layout.region_of(page)?;
        let shape = self.layout.regions().get(region)?;
        Some(GuestAddress(shape.address.0 + in_region * PAGE_BYTES))
    }

    /// What a page is for; `None` when it is in no region.
    pub fn class_of(&self, page: PageNumber) -> Option<PageClass> {
        self.address_of(page).map(|address| self.class_at(address))
    }

    /// What the page at an address inside guest memory is for.
    pub fn class_at(&self, address: GuestAddress) -> PageClass {
        if address.0 < SYSTEM_AREA_BYTES {
            let vcpu = address
                .0
                .checked_sub(CONTROL_PAGES_ADDRESS.0)
                .and_then(|offset| u32::try_from(offset / PAGE_BYTES).ok())
                .filter(|vcpu| *vcpu < self.vcpus());
            return vcpu.map_or(PageClass::System, PageClass::Control);
        }
        if self.replays {
            return PageClass::Hot(0);
        }
        // Ranges ascend; an empty one holds no address.
        let vcpu = self
            .hot_ranges
            .partition_point(|range| range.end() <= address.0);
        match self.hot_ranges.get(vcpu) {
            Some(range) if range.base <= address && address.0 < range.end() => {
                PageClass::Hot(vcpu as u32)
            }
            _ => PageClass::Fixed,
        }
    }
}

/// The memory that hot ranges may use: of each region, its first address there and its pages.
fn room(layout: &Layout) -> Vec<(u64, u64)> {
    layout
        .regions()
        .iter()
        .map(|region| {
            let first = region.address.0.max(SYSTEM_AREA_BYTES);
            let end = region.address.0 + region.bytes;
            (first, end.saturating_sub(first) / PAGE_BYTES)
        })
        .collect()
}

/// Places `hot_pages` pages, split among `vcpus`, into `room`; `None` when they do not fit.
///
/// The shares differ by one page at most, so filling region after region wastes no place that
/// another order could use.
fn place(room: &[(u64, u64)], vcpus: u32, hot_pages: u64) -> Option<Vec<HotRange>> {
    let vcpus = u64::from(vcpus);
    let mut regions = room.iter().copied();
    let (mut next, mut left) = regions.next()?;
    let mut ranges = Vec::new();
    for vcpu in 0..vcpus {
        let pages = hot_pages / vcpus + u64::from(vcpu < hot_pages % vcpus);
        while pages > left {
            (next, left) = regions.next()?;
        }
        ranges.push(HotRange {
            base: GuestAddress(next),
            pages,
        });
        next += pages * PAGE_BYTES;
        left -= pages;
    }
    Some(ranges)
}

/// The largest hot set, in bytes, below `too_many_pages` that fits.
fn most_that_fits(room: &[(u64, u64)], vcpus: u32, too_many_pages: u64) -> u64 {
    let (mut fits, mut fails) = (0, too_many_pages);
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        if place(room, vcpus, middle).is_some() {
            fits = middle;
        } else {
            fails = middle;
        }
    }
    fits * PAGE_BYTES
}

/// The smallest memory, in bytes, of a PC into which the hot set fits: made of the backing's pages,
/// low memory first (see [`crate::memory::pc_layout`]).
fn smallest_memory(layout: &Layout, vcpus: u32, hot_pages: u64) -> u64 {
    let unit = layout.regions().first().map_or(PAGE_BYTES, |region| {
        region.backing_page_bytes.max(PAGE_BYTES)
    });
    let fits_into = |units: u64| {
        let bytes = units * unit;
        let low = bytes.min(LOW_MEMORY_END);
        let room = [
            (
                SYSTEM_AREA_BYTES,
                low.saturating_sub(SYSTEM_AREA_BYTES) / PAGE_BYTES,
            ),
            (HIGH_MEMORY, (bytes - low) / PAGE_BYTES),
        ];
        place(&room, vcpus, hot_pages).is_some()
    };
    // All of it above the hole fits certainly. The cap keeps an absurd hot set from overflowing.
    let bytes_max = LOW_MEMORY_END
        .saturating_add(hot_pages.saturating_mul(PAGE_BYTES))
        .min(1 << 62);
    let (mut fails, mut fits) = (0, bytes_max.div_ceil(unit));
    while fits - fails > 1 {
        let middle = fails + (fits - fails) / 2;
        if fits_into(middle) {
            fits = middle;
        } else {
            fails = middle;
        }
    }
    fits * unit
}

#[cfg(test)]
mod tests {
    use dunlin_engine::layout::Backing;

    use super::*;
    use crate::memory::pc_layout;

    fn workload(hot_bytes: u64) -> Workload {
        Workload {
            hot_bytes,
            ..Workload::default()
        }
    }

    fn plan(memory_bytes: u64, vcpus: u32, hot_bytes: u64) -> Result<Plan, PlanError> {
        let layout = pc_layout(memory_bytes, Backing::Memfd).unwrap();
        Plan::new(&layout, vcpus, &workload(hot_bytes))
    }

    #[test]
    fn every_page_has_its_class() {
        let plan = plan(16 << 20, 2, 5 * PAGE_BYTES).unwrap();
        let mut classes = Vec::new();
        for page in 0..4096 {
            let class = plan.class_of(PageNumber(page)).unwrap();
            if classes.last().is_none_or(|(last, _)| *last != class) {
                classes.push((class, page));
            }
        }
        assert_eq!(
            classes,
            vec![
                (PageClass::System, 0),
                (PageClass::Control(0), 16),
                (PageClass::Control(1), 17),
                (PageClass::System, 18),
                (PageClass::Hot(0), 2048),
                (PageClass::Hot(1), 2051),
                (PageClass::Fixed, 2053),
            ]
        );
        assert_eq!(plan.class_of(PageNumber(4096)), None);
        assert_eq!(plan.control_page(1), Some(GuestAddress(0x1_1000)));
        assert_eq!(plan.control_page(2), None);
        assert_eq!(plan.hot_range(1).unwrap().base, GuestAddress(0x80_3000));
    }

    #[test]
    fn of_a_replay_every_page_may_be_rewritten_but_the_systems() {
        let layout = pc_layout(16 << 20, Backing::Memfd).unwrap();
        let workload = "pattern=replay".parse().unwrap();
        let plan = Plan::new(&layout, 2, &workload).unwrap();
        assert_eq!(plan.class_of(PageNumber(17)), Some(PageClass::Control(1)));
        assert_eq!(plan.class_of(PageNumber(2047)), Some(PageClass::System));
        for page in [2048, 4095] {
            assert_eq!(plan.class_of(PageNumber(page)), Some(PageClass::Hot(0)));
        }
        assert_eq!(plan.hot_range(1).unwrap().pages, 0);
    }

    #[test]
    fn a_vcpus_range_never_crosses_the_hole() {
        // 1.5 GiB fit below the hole, the second vCPU's share does not.
        let plan = plan(6 << 30, 2, 3 << 30).unwrap();
        assert_eq!(plan.hot_range(0).unwrap().base, GuestAddress(8 << 20));
        assert_eq!(plan.hot_range(1).unwrap().base, GuestAddress(HIGH_MEMORY));
        let first_high = plan.layout().page_of(GuestAddress(HIGH_MEMORY)).unwrap();
        assert_eq!(plan.class_of(first_high), Some(PageClass::Hot(1)));
        let last_low = PageNumber(LOW_MEMORY_END / PAGE_BYTES - 1);
        assert_eq!(plan.class_of(last_low), Some(PageClass::Fixed));
    }

    #[test]
    fn what_does_not_fit_says_what_would() {
        for (memory, vcpus, hot) in [
            (16 << 20, 1, 9 << 20),
            (16 << 20, 3, 1 << 30),
            (4 << 30, 2, 6 << 30),
            (8 << 20, 1, PAGE_BYTES),
        ] {
            let Err(PlanError::HotSetTooLarge {
                fits_bytes,
                needs_bytes,
                ..
            }) = plan(memory, vcpus, hot)
            else {
                panic!("{hot} bytes fit into {memory}");
            };
            plan(memory, vcpus, fits_bytes).unwrap();
            plan(memory, vcpus, fits_bytes + PAGE_BYTES).unwrap_err();
            plan(needs_bytes, vcpus, hot).unwrap();
            plan(needs_bytes - PAGE_BYTES, vcpus, hot).unwrap_err();
        }
    }

    #[test]
    fn limits_are_errors() {
        assert_eq!(plan(4 << 20, 1, 0), Err(PlanError::NoSystemArea));
        assert_eq!(plan(16 << 20, 0, 0), Err(PlanError::Vcpus(0)));
        assert_eq!(plan(16 << 20, 65, 0), Err(PlanError::Vcpus(65)));
        assert!(plan(16 << 20, 1, 100).is_err());
        assert!(plan(16 << 20, 64, !0xfff).is_err());
        // No hot set at all is allowed.
        let none = plan(8 << 20, 64, 0).unwrap();
        assert_eq!(none.hot_range(63).unwrap().pages, 0);
        assert_eq!(none.class_of(PageNumber(2047)), Some(PageClass::System));
    }
}
