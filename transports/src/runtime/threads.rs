//! Starting threads. A thread belongs to the world, and there to the process, of the one that
//! starts it.

use std::io;
#[cfg(feature = "simulation")]
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
#[cfg(feature = "simulation")]
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

#[cfg(feature = "simulation")]
use super::simulation::{self, Member};

/// A thread that can be waited for.
pub struct JoinHandle<T> {
    thread: std::thread::JoinHandle<T>,
    #[cfg(feature = "simulation")]
    member: Option<Member>,
}

impl<T> JoinHandle<T> {
    /// Waits for the thread's end; answers with its result.
    ///
    /// # Errors
    ///
    /// What the thread panicked with.
    pub fn join(self) -> std::thread::Result<T> {
        #[cfg(feature = "simulation")]
        if let Some(member) = &self.member {
            member.wait_for_end();
        }
        self.thread.join()
    }
}

/// Starts a thread of this name.
///
/// # Errors
///
/// When the system has no room for another thread.
pub fn spawn<T, F>(name: impl Into<String>, work: F) -> io::Result<JoinHandle<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let name = name.into();
    #[cfg(feature = "simulation")]
    if let Some(own) = simulation::current() {
        let member = own.enlist(&name);
        let inside = member.clone();
        let thread = Builder::new().name(name).spawn(move || inside.run(work));
        let thread = member.begun(thread)?;
        own.step();
        return Ok(JoinHandle {
            thread,
            member: Some(member),
        });
    }
    Ok(JoinHandle {
        thread: Builder::new().name(name).spawn(work)?,
        #[cfg(feature = "simulation")]
        member: None,
    })
}

/// Threads that end before what they borrow does; see [`scope`].
pub struct Scope<'scope, 'env> {
    threads: &'scope std::thread::Scope<'scope, 'env>,
    #[cfg(feature = "simulation")]
    members: Arc<Mutex<Vec<Member>>>,
}

impl Clone for Scope<'_, '_> {
    fn clone(&self) -> Self {
        Self {
            threads: self.threads,
            #[cfg(feature = "simulation")]
            members: Arc::clone(&self.members),
        }
    }
}

/// A thread of a scope that can be waited for.
pub struct ScopedJoinHandle<'scope, T> {
    thread: std::thread::ScopedJoinHandle<'scope, T>,
    #[cfg(feature = "simulation")]
    member: Option<Member>,
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the thread's end; answers with its result.
    ///
    /// # Errors
    ///
    /// What the thread panicked with.
    pub fn join(self) -> std::thread::Result<T> {
        #[cfg(feature = "simulation")]
        if let Some(member) = &self.member {
            member.wait_for_end();
        }
        self.thread.join()
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a thread of this name within the scope.
    ///
    /// # Errors
    ///
    /// When the system has no room for another thread.
    pub fn spawn<T, F>(
        &self,
        name: impl Into<String>,
        work: F,
    ) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        T: Send + 'scope,
        F: FnOnce() -> T + Send + 'scope,
    {
        let name = name.into();
        #[cfg(feature = "simulation")]
        if let Some(own) = simulation::current() {
            let member = own.enlist(&name);
            let inside = member.clone();
            let builder = Builder::new().name(name);
            let thread = builder.spawn_scoped(self.threads, move || inside.run(work));
            let thread = member.begun(thread)?;
            let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.push(member.clone());
            drop(members);
            own.step();
            return Ok(ScopedJoinHandle {
                thread,
                member: Some(member),
            });
        }
        Ok(ScopedJoinHandle {
            thread: Builder::new().name(name).spawn_scoped(self.threads, work)?,
            #[cfg(feature = "simulation")]
            member: None,
        })
    }
}

/// Runs `work`, and returns once every thread that was started within the scope has ended.
pub fn scope<'env, T>(work: impl for<'scope> FnOnce(Scope<'scope, 'env>) -> T) -> T {
    std::thread::scope(|threads| {
        let scope = Scope {
            threads,
            #[cfg(feature = "simulation")]
            members: Arc::default(),
        };
        #[cfg(feature = "simulation")]
        if simulation::current().is_some() {
            let members = Arc::clone(&scope.members);
            let result = catch_unwind(AssertUnwindSafe(|| work(scope)));
            // `std` waits next, and would not let anybody else of this world run meanwhile.
            loop {
                let next = members.lock().unwrap_or_else(PoisonError::into_inner).pop();
                match next {
                    Some(member) => member.wait_for_end(),
                    None => break,
                }
            }
            return result.unwrap_or_else(|panic| resume_unwind(panic));
        }
        work(scope)
    })
}
