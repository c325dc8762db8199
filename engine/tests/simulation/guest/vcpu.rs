//! The vCPUs: threads that write the guest's pages for as long as it runs on their side.

use std::sync::atomic::Ordering;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::runtime;

use super::{Machine, THINK_MAX, one};
use crate::ledger::page_content;

impl Machine {
    pub(super) fn vcpu(&self, number: u32) {
        let mut think = self.0.shape.think;
        let vcpus = u64::from(self.0.shape.vcpus);
        let is_own = |page: &u64| page % vcpus == u64::from(number);
        let own: Vec<_> = self.0.pages.iter().copied().filter(is_own).collect();
        let mut orders = self.0.orders.lock();
        loop {
            if !orders.run && !orders.end {
                orders.parked += 1;
                self.0.orders.notify_all();
                while !orders.run && !orders.end {
                    orders = self.0.orders.wait(orders);
                }
                orders.parked -= 1;
                self.0.orders.notify_all();
                think = self.0.shape.think;
            }
            if orders.end {
                return;
            }
            drop(orders);
            if !own.is_empty() {
                let drawn = self.world().draw(own.len() as u64) as usize;
                self.write(own[drawn]);
            }
            let until = Deadline::after(think);
            think = (think * 21 / 20).min(THINK_MAX);
            orders = self.0.orders.lock();
            while orders.run && !orders.end && !until.passed() {
                orders = self.0.orders.wait_timeout(orders, until.remaining());
            }
        }
    }

    /// A guest's write: torn for a moment, and marked behind it.
    pub(super) fn write(&self, page: u64) {
        let known = &self.0.generations[page as usize];
        let before = known.load(Ordering::SeqCst);
        let old = page_content(page, before);
        if !self.is_untouched(page, before) && self.page(page) != old {
            let side = self.0.side.name();
            let words = format!("page {page} on the {side} is not of generation {before}");
            self.0.ledger.violation(words);
        }
        let new = page_content(page, before + 1);
        let half = new.len() / 2;
        let torn = [&new[..half], &old[half..]].concat();
        let map = self.0.memory.guest_map();
        map.copy_in(one(page), &torn).unwrap();
        runtime::step();
        map.copy_in(one(page), &new).unwrap();
        known.store(before + 1, Ordering::SeqCst);
        self.0.ledger.write(self.0.side, page, before);
        runtime::step();
        self.mark(page);
    }

    pub(super) fn mark(&self, page: u64) {
        self.0.dirty[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// Lets every vCPU run; returns once each was entered.
    pub(super) fn go_on(&self) {
        let runs_already = self.0.ledger.runs(self.0.side);
        self.0.ledger.enter(self.0.side, &self.generations());
        let wrong = self.0.pages.iter().filter(|page| self.is_wrong(**page));
        let wrong: Vec<_> = wrong.take(8).collect();
        if !runs_already && !wrong.is_empty() {
            let side = self.0.side.name();
            let words =
                format!("pages {wrong:?} are wrong when the guest is entered on the {side}");
            self.0.ledger.violation(words);
        }
        let mut orders = self.0.orders.lock();
        orders.run = true;
        self.0.orders.notify_all();
        while orders.parked > 0 && !orders.end {
            orders = self.0.orders.wait(orders);
        }
    }

    /// Stops every vCPU; whether that was done by the deadline.
    pub(super) fn stand_still(&self, deadline: Deadline) -> bool {
        let mut orders = self.0.orders.lock();
        orders.run = false;
        self.0.orders.notify_all();
        while orders.parked < self.0.shape.vcpus {
            if deadline.passed() {
                return false;
            }
            orders = self.0.orders.wait_timeout(orders, deadline.remaining());
        }
        drop(orders);
        self.0.ledger.park(self.0.side);
        true
    }
}
