//! The layout of a guest's memory: its regions, what backs them, and where both sides map them.
//!
//! A [`Layout`] is the shape alone and travels to the peer. A [`GuestMemory`] is a layout with the
//! files and host mappings behind it, and stays in its process.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dunlin_transports::memory::{
    HostMapping, MemoryError, MemoryMap, PAGE_BYTES, PageNumber, next_region_start,
};
use thiserror::Error;

/// The most regions that a layout may have. KVM's own limit on memory slots is 32,764
/// (`KVM_CAP_NR_MEMSLOTS`); real machines have fewer than a hundred. It bounds a peer's message.
pub const REGIONS_MAX: usize = 1024;

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddress(pub u64);

impl fmt::Display for GuestAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// What backs a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// A memfd: shared, two mappings possible.
    Memfd,
    /// A memfd of huge pages.
    Hugetlb,
    /// Private anonymous memory.
    Anonymous,
}

impl Backing {
    /// The name in flags, reports and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memfd => "memfd",
            Self::Hugetlb => "hugetlb",
            Self::Anonymous => "anon",
        }
    }
}

/// One contiguous range of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionShape {
    /// Where the guest sees it.
    pub address: GuestAddress,
    /// Its length, a multiple of [`PAGE_BYTES`].
    pub bytes: u64,
    /// What backs it on the side that describes it.
    pub backing: Backing,
    /// The backing's own page size in bytes (4096, or 2 MiB and more for huge pages).
    pub backing_page_bytes: u64,
}

/// What is wrong with a layout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// It has no region, or more than [`REGIONS_MAX`].
    #[error("a layout has 1 to {REGIONS_MAX} regions, this one has {0}")]
    RegionCount(usize),
    /// A region is empty, or its address or length is not made of whole pages, or it passes the
    /// end of the address space.
    #[error("region {index} at {address} with {bytes} bytes is not made of whole pages")]
    BadRegion {
        /// Which region.
        index: usize,
        /// Its address.
        address: GuestAddress,
        /// Its length.
        bytes: u64,
    },
    /// Regions overlap or are not in ascending order.
    #[error("region {index} at {address} overlaps the one before it or is out of order")]
    OutOfOrder {
        /// Which region.
        index: usize,
        /// Its address.
        address: GuestAddress,
    },
    /// All regions together are too large.
    #[error("the layout is larger than this version can move")]
    TooLarge,
}

/// All regions of a guest, in ascending order of address. Checked when made; frozen during a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    generation: u64,
    regions: Vec<RegionShape>,
    first_pages: Vec<u64>,
    page_span: u64,
}

impl Layout {
    /// A layout of `regions`.
    ///
    /// # Errors
    ///
    /// When they are not a valid layout; see [`LayoutError`].
    pub fn new(generation: u64, regions: Vec<RegionShape>) -> Result<Self, LayoutError> {
        if regions.is_empty() || regions.len() > REGIONS_MAX {
            return Err(LayoutError::RegionCount(regions.len()));
        }
        let mut first_pages = Vec::with_capacity(regions.len());
        let mut next_page = 0;
        let mut page_span = 0;
        let mut next_address = 0;
        for (index, region) in regions.iter().enumerate() {
            let RegionShape { address, bytes, .. } = *region;
            let end = address.0.checked_add(bytes);
            let (true, Some(end)) = (
                bytes > 0
                    && bytes.is_multiple_of(PAGE_BYTES)
                    && address.0.is_multiple_of(PAGE_BYTES),
                end,
            ) else {
                return Err(LayoutError::BadRegion {
                    index,
                    address,
                    bytes,
                });
            };
            if address.0 < next_address {
                return Err(LayoutError::OutOfOrder { index, address });
            }
            next_address = end;
            first_pages.push(next_page);
            page_span = next_page + bytes / PAGE_BYTES;
            next_page =
                next_region_start(next_page, bytes / PAGE_BYTES).ok_or(LayoutError::TooLarge)?;
        }
        Ok(Self {
            generation,
            regions,
            first_pages,
            page_span,
        })
    }

    /// Counts up when regions change; the same during one move.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The regions, in ascending order of address.
    pub fn regions(&self) -> &[RegionShape] {
        &self.regions
    }

    /// The page number of a region's first page; `None` when there is no such region.
    pub fn first_page(&self, region: usize) -> Option<PageNumber> {
        self.first_pages.get(region).copied().map(PageNumber)
    }

    /// One more than the highest page number: the length of a bitmap of the whole layout, in bits.
    pub fn page_span(&self) -> u64 {
        self.page_span
    }

    /// How many pages there are (gaps between regions' page numbers do not count).
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_BYTES
    }

    /// How many bytes of guest memory there are.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// How many of them are huge pages, which were set aside when the memory was made.
    pub fn hugetlb_bytes(&self) -> u64 {
        let regions = self.regions.iter();
        regions
            .filter(|region| region.backing == Backing::Hugetlb)
            .map(|region| region.bytes)
            .sum()
    }

    /// The region that a page number lies in, and the page's place in it.
    pub fn region_of(&self, page: PageNumber) -> Option<(usize, u64)> {
        let region = self
            .first_pages
            .partition_point(|first| *first <= page.0)
            .checked_sub(1)?;
        let in_region = page.0 - self.first_pages.get(region)?;
        (in_region < self.regions.get(region)?.bytes / PAGE_BYTES).then_some((region, in_region))
    }

    /// The page that holds a guest-physical address.
    pub fn page_of(&self, address: GuestAddress) -> Option<PageNumber> {
        let region = self
            .regions
            .partition_point(|region| region.address <= address)
            .checked_sub(1)?;
        let offset = address.0 - self.regions.get(region)?.address.0;
        (offset < self.regions.get(region)?.bytes)
            .then(|| {
                self.first_pages
                    .get(region)
                    .map(|first| PageNumber(first + offset / PAGE_BYTES))
            })
            .flatten()
    }
}

/// A region with what is behind it in this process.
#[derive(Clone)]
pub struct Region {
    /// The memfd, where there is one; the region starts at `file_offset` in it.
    pub file: Option<Arc<OwnedFd>>,
    /// Where in the file the region starts, in bytes.
    pub file_offset: u64,
    /// The guest's mapping: what KVM or the guest's threads use.
    pub guest_mapping: Arc<dyn HostMapping>,
    /// The lanes' mapping; may be the same.
    pub lane_mapping: Arc<dyn HostMapping>,
}

/// A guest's memory in this process: the layout, and what is behind each region.
#[derive(Clone)]
pub struct GuestMemory {
    layout: Layout,
    regions: Vec<Region>,
    guest_map: MemoryMap,
    lane_map: MemoryMap,
}

impl GuestMemory {
    /// Joins a layout and what is behind its regions, in the same order.
    ///
    /// # Errors
    ///
    /// When a mapping's length is not its region's.
    pub fn new(layout: Layout, regions: Vec<Region>) -> Result<Self, MemoryError> {
        let shapes = layout.regions();
        if shapes.len() != regions.len() {
            return Err(MemoryError::NotWholePages {
                region: regions.len(),
                bytes: 0,
            });
        }
        for (index, (shape, region)) in shapes.iter().zip(&regions).enumerate() {
            for mapping in [&region.guest_mapping, &region.lane_mapping] {
                if mapping.bytes() != shape.bytes {
                    return Err(MemoryError::NotWholePages {
                        region: index,
                        bytes: mapping.bytes(),
                    });
                }
            }
        }
        let map = |pick: fn(&Region) -> &Arc<dyn HostMapping>| {
            MemoryMap::new(
                regions
                    .iter()
                    .map(|region| Arc::clone(pick(region)))
                    .collect(),
            )
        };
        let guest_map = map(|region| &region.guest_mapping)?;
        let lane_map = map(|region| &region.lane_mapping)?;
        Ok(Self {
            layout,
            regions,
            guest_map,
            lane_map,
        })
    }

    /// The shape.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is behind each region, in the layout's order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// All memory through the guest's mappings.
    pub fn guest_map(&self) -> &MemoryMap {
        &self.guest_map
    }

    /// All memory through the lanes' mappings.
    pub fn lane_map(&self) -> &MemoryMap {
        &self.lane_map
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GuestMemory")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(address: u64, bytes: u64) -> RegionShape {
        RegionShape {
            address: GuestAddress(address),
            bytes,
            backing: Backing::Memfd,
            backing_page_bytes: PAGE_BYTES,
        }
    }

    #[test]
    fn pages_and_addresses_map_to_each_other() {
        let layout = Layout::new(1, vec![shape(0, 0x3000), shape(0x10_0000, 0x2000)]).unwrap();
        assert_eq!(layout.page_span(), 66);
        assert_eq!(layout.pages(), 5);
        assert_eq!(layout.page_of(GuestAddress(0x2fff)), Some(PageNumber(2)));
        assert_eq!(layout.page_of(GuestAddress(0x3000)), None);
        assert_eq!(
            layout.page_of(GuestAddress(0x10_1000)),
            Some(PageNumber(65))
        );
        assert_eq!(layout.region_of(PageNumber(65)), Some((1, 1)));
        assert_eq!(layout.region_of(PageNumber(3)), None);
        assert_eq!(layout.region_of(PageNumber(66)), None);
    }

    #[test]
    fn huge_pages_are_counted() {
        let huge = RegionShape {
            backing: Backing::Hugetlb,
            ..shape(0x20_0000, 0x20_0000)
        };
        let layout = Layout::new(1, vec![shape(0, 0x3000), huge]).unwrap();
        assert_eq!(layout.hugetlb_bytes(), 0x20_0000);
        assert_eq!(layout.bytes(), 0x20_3000);
    }

    #[test]
    fn bad_layouts_are_refused() {
        for bad in [
            vec![],
            vec![shape(0, 0)],
            vec![shape(1, 0x1000)],
            vec![shape(0, 0x1001)],
            vec![shape(u64::MAX - 0xfff, 0x1000)],
            vec![shape(0, 0x2000), shape(0x1000, 0x1000)],
            vec![shape(0x1000, 0x1000), shape(0, 0x1000)],
            vec![shape(0, 1 << 47)],
            vec![shape(0, 0x1000); REGIONS_MAX + 1],
        ] {
            assert!(Layout::new(0, bad.clone()).is_err(), "{:?}", bad.first());
        }
    }
}
