//! The threads that work through all of a guest's memory: filling it, and comparing it page by page.
//!
//! A pool of their own, made when it is first needed, with one thread for each processor that this
//! process may use. They are neither pinned nor put behind the others: comparing has a time limit,
//! and vCPUs that never rest would leave nothing to threads that stand back. Nothing in a blackout
//! uses them.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// The pool; `None` where the system starts no threads. The caller does the work itself then.
pub(super) fn all_processors() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    POOL.get_or_init(start).as_ref()
}

fn start() -> Option<ThreadPool> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("dunlin-pages-{index}"));
    pool.build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_by_as_many_threads_as_there_are_processors() {
        let (threads, name) = all_processors().unwrap().install(|| {
            let name = std::thread::current().name().map(str::to_owned);
            (rayon::current_num_threads(), name)
        });
        let processors = std::thread::available_parallelism().unwrap();
        assert_eq!(threads, processors.get());
        assert!(name.is_some_and(|name| name.starts_with("dunlin-pages-")));
    }
}
