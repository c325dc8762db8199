//! How long a lane's work takes, for whoever wants to know. A lane that nobody observes reads no
//! clock for it.

/// Something that a lane does, whose duration may be of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneWork {
    /// Guest bytes on their way, from handing them to the system or the device until it was through
    /// with them: a batch over TCP; over RDMA a request that asks for its completion.
    Put {
        /// How many.
        bytes: u64,
    },
    /// One operation of io_uring, from submitting it until its completion was seen.
    Submission,
    /// Taking one batch off the lane and into memory, waiting for its bytes included.
    Receive,
}

/// Takes note of how long a lane's work takes: on the lane's own thread, so it should be quick.
pub trait LaneObserver: Send {
    /// This moment, on a clock of the observer's.
    fn now(&self) -> u64;

    /// The lane did something from `begun` to `ended`, both of that clock.
    fn took(&mut self, work: LaneWork, begun: u64, ended: u64);
}

/// Who observes a lane, if anybody does.
#[derive(Default)]
pub(crate) struct Observer(Option<Box<dyn LaneObserver>>);

impl Observer {
    /// From now on this one.
    pub(crate) fn set(&mut self, observer: Box<dyn LaneObserver>) {
        self.0 = Some(observer);
    }

    /// This moment; `None` where nobody asks.
    #[inline]
    pub(crate) fn now(&self) -> Option<u64> {
        self.0.as_ref().map(|observer| observer.now())
    }

    /// What began at `begun` is done now.
    #[inline]
    pub(crate) fn done(&mut self, work: LaneWork, begun: Option<u64>) {
        if let (Some(observer), Some(begun)) = (&mut self.0, begun) {
            let now = observer.now();
            observer.took(work, begun, now);
        }
    }
}
