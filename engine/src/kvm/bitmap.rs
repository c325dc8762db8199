//! KVM's dirty log as a bitmap.
//!
//! With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`, `KVM_GET_DIRTY_LOG` only copies, and
//! `KVM_CLEAR_DIRTY_LOG` clears and re-protects exactly the pages that it is given (kernel:
//! Documentation/virt/kvm/api.rst, 4.8, 4.117 and 7.18). With `KVM_DIRTY_LOG_INITIALLY_SET` a slot
//! starts with every bit set and nothing protected, so that starting costs nothing and pages become
//! protected as the first round clears them. Without manual protection a copy clears and protects
//! the whole slot.

use std::sync::{Mutex, PoisonError};

use dunlin_transports::memory::PageNumber;
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};

use super::{KvmError, KvmSlots, ioctl};
use crate::dirty::{DirtyBitmap, DirtySource};
use crate::guest::GuestError;

/// A guest's writes, by KVM's bitmap.
pub struct KvmBitmap {
    slots: KvmSlots,
    manual_protect: bool,
    /// A copy of one slot's log; kept, so that no collection allocates.
    copy: Mutex<Vec<u64>>,
}

impl KvmBitmap {
    /// Prepares tracking, with manual protection where KVM has it. Not for a VM whose rings are on.
    ///
    /// # Errors
    ///
    /// When KVM announces manual protection and then refuses it.
    pub fn new(slots: KvmSlots) -> Result<Self, KvmError> {
        let offered = slots
            .vm()
            .check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
        let wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        let options = u32::try_from(offered).unwrap_or(0) & wanted;
        let manual_protect = options & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
        if manual_protect {
            let mut capability = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                ..Default::default()
            };
            capability.args[0] = options.into();
            slots
                .vm()
                .enable_cap(&capability)
                .map_err(KvmError::system("enabling manual dirty log protection"))?;
        }
        let longest = slots.iter().map(|slot| slot.pages).max().unwrap_or(0);
        let words = usize::try_from(longest.div_ceil(64)).unwrap_or(usize::MAX);
        Ok(Self {
            slots,
            manual_protect,
            copy: Mutex::new(vec![0; words]),
        })
    }

    fn try_collect(&self, into: &mut DirtyBitmap) -> Result<(), KvmError> {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in self.slots.iter() {
            let words = usize::try_from(slot.pages.div_ceil(64)).unwrap_or(usize::MAX);
            let first_word = usize::try_from(slot.first_page / 64).unwrap_or(usize::MAX);
            let outside = || KvmError::OutsideSlot {
                first: PageNumber(slot.first_page),
                pages: slot.pages,
            };
            let copied = copy.get_mut(..words).ok_or_else(outside)?;
            let own = into.words().get(first_word..);
            own.and_then(|rest| rest.get(..words)).ok_or_else(outside)?;
            ioctl::get_dirty_log(self.slots.vm(), slot.number, slot.pages, copied)
                .map_err(KvmError::io("reading the dirty log"))?;
            into.add_words(first_word, copied);
        }
        Ok(())
    }

    fn try_rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), KvmError> {
        if !self.manual_protect || words.iter().all(|word| *word == 0) {
            return Ok(());
        }
        let outside = || KvmError::OutsideSlot {
            first,
            pages: words.len() as u64 * 64,
        };
        let slot = self.slots.slot_of(first).ok_or_else(outside)?;
        let in_slot = first.0 - slot.first_page;
        let left = slot.pages.checked_sub(in_slot).ok_or_else(outside)?;
        if !first.0.is_multiple_of(64) || words.len() as u64 > left.div_ceil(64) {
            return Err(outside());
        }
        // A multiple of 64 but at the slot's end, as KVM_CLEAR_DIRTY_LOG demands.
        let pages = (words.len() as u64 * 64).min(left);
        let pages = u32::try_from(pages).map_err(|_| outside())?;
        ioctl::clear_dirty_log(self.slots.vm(), slot.number, in_slot, pages, words)
            .map_err(KvmError::io("clearing the dirty log"))
    }
}

impl DirtySource for KvmBitmap {
    fn name(&self) -> &'static str {
        "kvm-bitmap"
    }

    fn start(&self) -> Result<(), GuestError> {
        Ok(self.slots.log_dirty_pages(true)?)
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        Ok(self.try_collect(into)?)
    }

    fn rearms_on_collect(&self) -> bool {
        !self.manual_protect
    }

    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError> {
        Ok(self.try_rearm(first, words)?)
    }

    fn stop(&self) -> Result<(), GuestError> {
        Ok(self.slots.log_dirty_pages(false)?)
    }
}
