//! A value that seldom changes, at which many threads look without sharing a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The value, and how often it was changed.
#[derive(Default)]
pub(crate) struct Published<T> {
    value: Mutex<Arc<T>>,
    changes: AtomicU64,
}

/// What one thread has seen of it: the value after so many changes.
pub(crate) struct View<T>(Option<(u64, Arc<T>)>);

impl<T> Default for View<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Published<T> {
    /// Changes the value; answers with what `change` does. Whoever looks at it behind this sees it.
    /// The value is copied where somebody has it in view.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        // No code panics while it holds the lock, so that the value is always a whole one.
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(Arc::make_mut(&mut value));
        self.changes.fetch_add(1, Ordering::Release);
        changed
    }

    /// The value as it is now. Takes no lock while it does not change.
    pub(crate) fn look<'v>(&self, view: &'v mut View<T>) -> &'v T {
        let changes = self.changes.load(Ordering::Acquire);
        view.0.take_if(|(seen, _)| *seen != changes);
        let (_, value) = view.0.get_or_insert_with(|| {
            let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            // Held, it does not change: this is how often it has.
            (self.changes.load(Ordering::Acquire), Arc::clone(&value))
        });
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_view_sees_each_change() {
        let published = Published::<Vec<u32>>::default();
        let (mut one, mut other) = (View::default(), View::default());
        assert!(published.look(&mut one).is_empty());
        for number in 0..3 {
            published.change(|value| value.push(number));
            assert_eq!(published.look(&mut one).len(), number as usize + 1);
        }
        assert_eq!(published.look(&mut other), &[0, 1, 2]);
        assert_eq!(published.change(|value| value.pop()), Some(2));
        assert_eq!(published.look(&mut one), &[0, 1]);
        assert_eq!(published.look(&mut other), &[0, 1]);
    }
}
