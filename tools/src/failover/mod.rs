//! `replctl auto-failover`: keeps a service running where the resource is Primary, and sees to it that some node is, without a cluster
//! manager.
//!
//! One of these runs beside `repld` on every data node. It is a process of its own, so that it stops the service also when `repld` is
//! killed or hangs. It decides nothing about data: `promote` does, with a majority. What it adds is when to ask for that, and that the
//! service runs on one node at a time:
//!
//! - **It starts the service** only on a Primary whose lease runs, as it heard from `repld` a moment ago.
//! - **It stops it before the lease ends**: when the lease was not renewed for most of its length, when `repld` is gone or does not
//!   answer, or when this node is not Primary any more. Until the lease's end (and `start_delay_ms` more) the service may stop
//!   by itself, then it is killed. Nobody else can be promoted before a lease ends.
//! - **It asks for promotion** on a node that has the newest data and reaches a majority, when the last lease that it heard of is
//!   over. The node with the longest log asks first, the others a lease later each.
//!
//! The service ends by itself, or can not be started: this node stops being Primary, and leaves it to the others for a while.
//!
//! [`news`] asks `repld` without ever holding anything else up, [`judge`] says what a status means, [`service`] starts and stops.

mod judge;
mod news;
mod service;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nbd_server::admin::Request;
use nbd_server::config::{Config, Failover, Node, NodeRole};
use nix::time::{ClockId, clock_gettime};

use crate::Failure;
use judge::{Standing, judge};
use news::{Asked, News};
use service::Service;

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(25);
/// The pause after a promotion, or a demotion, that failed.
const RETRY: Duration = Duration::from_millis(500);
/// How long the first answer of `repld` is waited for.
const FIRST_NEWS: Duration = Duration::from_secs(1);
/// How long a promotion is tried.
const PROMOTE_TIMEOUT_MS: u64 = 5_000;
/// How long a node whose service failed leaves it to the others.
const REST: Duration = Duration::from_secs(30);
/// If none of them takes over for so many leases it does not rest any longer.
const REST_LEASES: u32 = 5;
/// A lease of which less than this share is left is as good as over: the service is told to stop.
const STOP_SHARE: u32 = 4;
/// With less than this share left it is killed.
const KILL_SHARE: u32 = 8;

/// The time, on a clock that goes on while the host sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(Duration);

impl Moment {
    fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        Self(now.unwrap_or_default())
    }

    fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

/// Runs until it is told to end by SIGTERM or SIGINT; then the service is stopped and the node demoted.
pub(crate) fn run(config: &Config, node: &Node) -> Result<(), Failure> {
    let Some(failover) = &config.failover else {
        return Err(Failure::Usage(format!(
            "{} has no [failover]: write one with unit = \"pbx.target\" or command = \"/usr/local/sbin/pbx\", on every node",
            config.file.display()
        )));
    };
    if node.role == NodeRole::Witness {
        return Err(Failure::Usage(format!(
            "{} is a witness: it is never Primary, and nothing is to be run there",
            node.name
        )));
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))
            .map_err(|error| Failure::Failed(format!("signals can not be handled: {error}")))?;
    }
    let mut keeper = Keeper::new(config, node, failover)?;
    while !keeper.is_done(ended.load(Ordering::Relaxed)) {
        sleep(TICK);
    }
    Ok(())
}

/// What is known and under way.
struct Keeper<'a> {
    config: &'a Config,
    failover: &'a Failover,
    node: &'a Node,
    news: News,
    service: Service,
    /// Until when this node may serve, as far as is known.
    lease_until: Option<Moment>,
    /// Since when it is Primary.
    primary_since: Option<Moment>,
    /// Since when it could be promoted.
    fit_since: Option<Moment>,
    /// The service is not started before this, and the others come first.
    not_before: Moment,
    /// No promotion is asked for before this, in any case.
    retry_at: Moment,
    asked: Asked,
    /// The service is to be stopped, and the node demoted then.
    giving_up: bool,
    /// No demotion is asked for before this.
    demote_at: Moment,
}

impl<'a> Keeper<'a> {
    fn new(config: &'a Config, node: &'a Node, failover: &'a Failover) -> Result<Self, Failure> {
        let place = Path::new(&node.run_dir);
        let environment = [
            ("REPLICATOR_RESOURCE", config.resource.clone()),
            ("REPLICATOR_NODE", node.name.clone()),
            ("REPLICATOR_CONFIG", config.file.display().to_string()),
            (
                "REPLICATOR_NBD_SOCKET",
                node.nbd_socket().display().to_string(),
            ),
            ("REPLICATOR_RUN_DIR", place.display().to_string()),
        ];
        say(&format!("{} of {} is watched", node.name, config.resource));
        let news = News::start(node)?;
        // What runs from before is judged by what is known then.
        let began = Moment::now();
        while news.newest(Moment::now()).is_none() && Moment::now() < began.after(FIRST_NEWS) {
            sleep(TICK);
        }
        Ok(Self {
            config,
            failover,
            node,
            news,
            service: Service::new(&failover.service, &environment),
            lease_until: None,
            primary_since: None,
            fit_since: None,
            not_before: Moment::now(),
            retry_at: Moment::now(),
            asked: Asked::default(),
            giving_up: false,
            demote_at: Moment::now(),
        })
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.config.policy.lease_ms.into())
    }

    /// Does what is due; `true` once it has ended as it was told to.
    fn is_done(&mut self, told_to_end: bool) -> bool {
        let now = Moment::now();
        let (standing, asked_at) = match self.news.newest(now) {
            Some((at, status)) => (judge(&status, self.config, at), Some(at)),
            None => (Standing::Silent, None),
        };
        self.note(&standing, now);
        self.asked.look();
        if let Some(said) = self.service.look(now) {
            say(&said);
            self.give_up("the service has ended", now);
        }
        if told_to_end && !self.giving_up {
            say("told to end: the service is stopped, and this node demoted");
            self.giving_up = true;
        }
        let holds = self.holds(now);
        if self.service.is_wanted() && (!holds || self.giving_up) {
            self.stop(now, holds);
        }
        if !holds {
            // A lease that ends leaves no time for what was meant to stop in peace.
            self.service.kill_at(self.end_of_service(now));
        }
        if self.giving_up {
            // What was said before a request was answered says nothing of what that did.
            let seen = self.asked.is_seen_at(asked_at.unwrap_or(now));
            return seen && self.demote(&standing, told_to_end, now);
        }
        match standing {
            Standing::Primary { .. } if holds => self.start(now),
            Standing::Fit { place } => self.promote(place, now),
            _ => {}
        }
        false
    }

    /// Takes note of what `repld` said.
    fn note(&mut self, standing: &Standing, now: Moment) {
        match standing {
            Standing::Primary { lease_until } => {
                self.lease_until = Some(*lease_until);
                self.primary_since = self.primary_since.or(Some(now));
            }
            // Whatever lease it had ends as it was going to.
            Standing::Silent => self.primary_since = None,
            // It is not Primary: others may be, now.
            _ => (self.lease_until, self.primary_since) = (None, None),
        }
        if !matches!(standing, Standing::Fit { .. }) {
            self.fit_since = None;
        }
    }

    /// Whether the lease runs for long enough that the service can be left alone.
    fn holds(&self, now: Moment) -> bool {
        let enough = |until: Moment| now < until.before(self.lease() / STOP_SHARE);
        self.primary_since.is_some() && self.lease_until.is_some_and(enough)
    }

    /// When the service has to have ended, so that no other node's can have started.
    fn end_of_service(&self, now: Moment) -> Moment {
        let lease = self
            .lease_until
            .map(|until| until.before(self.lease() / KILL_SHARE));
        lease.unwrap_or(now).after(self.failover.start_delay)
    }

    fn start(&mut self, now: Moment) {
        let since = self.primary_since.unwrap_or(now);
        if self.service.is_wanted()
            || !self.service.is_stopped()
            || now < self.not_before
            || now < since.after(self.failover.start_delay)
        {
            return;
        }
        say("this node is Primary: the service is started");
        if let Err(why) = self.service.start() {
            say(&why);
            self.give_up("the service can not be started", now);
        }
    }

    fn stop(&mut self, now: Moment, holds: bool) {
        let kill_at = if holds {
            now.after(self.failover.stop_timeout)
        } else {
            say("the lease is not renewed, or this node is not Primary: the service is stopped");
            self.end_of_service(now)
        };
        self.service.stop(kill_at);
    }

    /// Leaves the service to the others.
    fn give_up(&mut self, why: &str, now: Moment) {
        say(&format!(
            "{why}: this node is demoted, and rests for {} s",
            REST.as_secs()
        ));
        self.giving_up = true;
        self.not_before = now.after(REST);
    }

    /// Demotes the node once the service is stopped; `true` if that was the end.
    fn demote(&mut self, standing: &Standing, told_to_end: bool, now: Moment) -> bool {
        if !self.service.is_stopped() {
            return false;
        }
        if matches!(standing, Standing::Primary { .. }) {
            if now >= self.demote_at {
                self.demote_at = now.after(RETRY);
                // What the service left attached does not keep it.
                self.asked.ask(self.node, Request::Demote { force: true });
            }
            return false;
        }
        self.giving_up = false;
        told_to_end
    }

    fn promote(&mut self, place: u32, now: Moment) {
        let since = *self.fit_since.get_or_insert(now);
        let rests = now < self.not_before;
        let place = place + if rests { REST_LEASES } else { 0 };
        let due = since.after(place * self.lease());
        if now < due.max(self.retry_at) || self.asked.is_open() || !self.service.is_stopped() {
            return;
        }
        say("no Primary is there, and this node has the newest data: it is promoted");
        let request = Request::Promote {
            timeout_ms: PROMOTE_TIMEOUT_MS,
            force: false,
        };
        self.retry_at = now.after(RETRY);
        self.not_before = now;
        self.asked.ask(self.node, request);
    }
}

fn say(text: &str) {
    eprintln!("replctl: {text}");
}

#[cfg(test)]
mod tests;
