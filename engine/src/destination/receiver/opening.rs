//! From HELLO to the session: making room for the guest, WELCOME, and starting the threads.

use super::lanes::{EndedLanes, Outlet, issue_tickets, let_in, start_lanes};
use super::prefault::{Ahead, Backers};
use super::ranges::start_pool;
use super::*;

pub(in crate::destination) fn receive<F: GuestFactory>(
    arrival: Arrival<'_, F>,
    settings: &ReceiveSettings,
) -> Result<Received<F::Guest>, ReceiveError> {
    let Arrival {
        control,
        hello,
        factory,
        endpoint,
        mut journal,
        outside,
    } = arrival;
    let hello = &hello;
    let shelf = Shelf::new(End::Destination);
    let mut recorder = shelf.recorder(Track::Control);
    let (inputs_sender, waiting) = sync_channel(INPUTS_WAITING);
    // From here on PINGs are answered, however long making room takes.
    let link = Link::start(
        control,
        Opening::Theirs,
        settings.peer_timeout,
        inputs_sender.clone(),
        shelf.reader(),
    )?;
    // Declared behind the link, so that it goes first: the link's thread may be waiting for room.
    let inputs = waiting;
    let mut refused = |error: ReceiveError| {
        // There was no WELCOME, so nobody will ask; where it can't be recorded, that costs nothing.
        let (words, deadline) = (error.to_string(), Deadline::after(LAST_WORD_TIME));
        let _ = journal.add(Entry::NotCome, &words, Durability::Plain, deadline);
        let refusal = match error {
            ReceiveError::Lane(_) | ReceiveError::Transport(_) => Refused::transport(&words),
            _ => Refused::new(&words),
        };
        if link.send(&Message::Refused(refusal)).is_ok() {
            linger(&inputs);
        }
        Err(error)
    };
    let refuse = |error: &dyn std::fmt::Display| ReceiveError::Refused(error.to_string());

    let begun = recorder.now();
    let created = factory.create(hello.offer());
    let made = recorder.now();
    recorder.span(SpanName::MakeRoom, begun, made);
    let guest = match created {
        Ok(guest) => guest,
        Err(error) => return refused(refuse(&error)),
    };
    if let Err(error) = same_shape(hello, &guest) {
        return refused(refuse(&error));
    }
    if settings.prefault_all
        && let Err(error) = prefault::populate_all(guest.memory().lane_map())
    {
        return refused(refuse(&error));
    }
    let endpoint = match endpoint(guest.memory().lane_map().clone()) {
        Ok(endpoint) => endpoint,
        Err(error) => return refused(error.into()),
    };
    if endpoint.transport() != hello.transport() {
        let (wanted, here) = (hello.transport(), endpoint.transport());
        let wanted = Abort::new(wanted).reason();
        return refused(ReceiveError::Transport(format!(
            "lanes over '{wanted}' are asked for, this side has '{here}'"
        )));
    }
    let let_in = let_in(endpoint.as_ref(), &guest, hello, settings, &shelf);
    let prepared = recorder.now();
    recorder.span(SpanName::PrepareMemory, made, prepared);
    let (grants, pin_budget_bytes) = match let_in {
        Ok(prepared) => prepared,
        Err(error) => return refused(error),
    };
    let tickets = match issue_tickets(hello, settings) {
        Ok(tickets) => tickets,
        Err(error) => return refused(refuse(&error)),
    };
    let self_check = if guest.self_check().is_some() {
        capability::SELF_CHECK
    } else {
        0
    };
    let ahead_threads = prefault::threads_ahead(hello, settings, endpoint.as_ref(), tickets.len());
    let prefault = if ahead_threads > 0 {
        capability::PREFAULT
    } else {
        0
    };
    let sometimes = capability::SELF_CHECK | capability::PREFAULT;
    let own = capability::ALL & !sometimes | self_check | prefault;
    let costs = guest.handover_costs();
    let record = journal.expected_duration(Deadline::after(LAST_WORD_TIME));
    let told = |cost: Option<Duration>| {
        cost.map(|cost| u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX))
    };
    let costs = WireCosts {
        load_ns: told(costs.load),
        resume_ns: told(costs.resume),
        record_ns: told(record),
    };
    factory.reached(Milestone::Welcomed);
    let welcome = link.send(&Message::Welcome(Welcome {
        version: hello.version,
        capabilities: own & hello.message.capabilities,
        tokens: tickets.iter().map(|ticket| ticket.token.0.into()).collect(),
        grants: Grants::new(&grants),
        host: WireHost::new(&this_host(), &boot_id()),
        mechanism: endpoint.mechanism(),
        contact: Some(endpoint.contact())
            .filter(|contact| !contact.is_empty())
            .map(Into::into),
        pin_budget_bytes,
        costs: Some(Box::new(costs)),
    }));
    if let Err(error) = welcome {
        let (words, deadline) = (error.to_string(), Deadline::after(LAST_WORD_TIME));
        let _ = journal.add(Entry::NotCome, &words, Durability::Plain, deadline);
        return Err(error.into());
    }

    let pool = Pool::default();
    let backers = Backers::new(guest.memory().lane_map().clone());
    let ended = EndedLanes::new(tickets.len());
    runtime::scope(|scope| {
        let began = Timestamp::now();
        let receiver = Destination {
            hello,
            endpoint: endpoint.as_ref(),
            settings,
            seen: vec![0; tickets.len()],
            open: vec![false; tickets.len()],
            ended: &ended,
            identities: None,
            pool: &pool,
            ranges: pin_budget_bytes.map(|budget| OpenRanges::new(budget, &pool)),
            ahead: (ahead_threads > 0).then(|| Ahead(&backers)),
            naming_limit: None,
            counters: vec![Some(LaneCounters::default()); tickets.len()],
            inputs,
            link,
            lost: false,
            factory,
            journal,
            outside,
            guest: Some(guest),
            session: DestinationSession::new(),
            reason: None,
            broken: None,
            began,
            prepare: None,
            prepare_received: began,
            handover_limit: settings.peer_timeout,
            ready: Ready::default(),
            running: Running::default(),
            claims: None,
            verified: Verified::default(),
            running_since: None,
            source_knows: false,
            has_recorded_running: false,
            recorder,
            shelf: shelf.clone(),
        };
        let pool_started = match pin_budget_bytes {
            Some(_) => start_pool(&scope, &pool, endpoint.as_ref(), &inputs_sender, &shelf),
            None => Ok(()),
        };
        backers.start(&scope, ahead_threads, &shelf);
        let started = pool_started.and_then(|()| {
            start_lanes(
                scope,
                endpoint.as_ref(),
                tickets,
                hello,
                settings,
                Outlet {
                    inputs: inputs_sender,
                    ended: &ended,
                },
                shelf.clone(),
            )
        });
        receiver.run(started)
    })
}

/// Whether the guest that was made has the memory that was asked for.
fn same_shape<G: IncomingGuest>(hello: &Hello, guest: &G) -> Result<(), GuestError> {
    let asked = hello.offer().layout.regions();
    let made = guest.memory().layout().regions();
    let shape = |region: &crate::layout::RegionShape| (region.address, region.bytes);
    if asked.iter().map(shape).eq(made.iter().map(shape)) {
        return Ok(());
    }
    Err(GuestError::message(
        "the guest that was made has another memory layout",
    ))
}
