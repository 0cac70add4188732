//! Workers of several models that die together: one incident, told as one, whose models come back one after the other.
//!
//! What takes a device away kills whoever uses it, within moments and in the same way. So deaths of different models by one
//! class of cause within [`INCIDENT_WINDOW_MS`] are taken for one incident. Ends that a model has to itself are none: for
//! its memory, for files that can't be loaded, for a program that can't be started or is of another version.
//!
//! Its models are started one at a time, first the one that most clients wait for: loads beside each other are all slow, and
//! what has just come back is spared a stampede. One that loads holds the others back until it is ready or gone, and for
//! [`INCIDENT_STAGGER_MS`] at most. The first to die may be on its way before anybody knows of a second; then that is the
//! one that loads.
//!
//! Decision: it is no evidence against those that were present: what takes a device away does so whoever uses it. Its deaths
//! still count against the models, so that one that only ever dies together with another comes to rest all the same.
//!
//! Decision: an incident is counted, and stands in the records of its deaths, from the second of them on; the log hears of it
//! when nobody can join any more, so that one line names all. Rejected: a line per death, of which each names others.
//!
//! Decision: who loads is read off the models whenever somebody asks. Rejected: a ticket that is handed on, which is lost
//! with its holder.

use std::cmp::Reverse;
use std::sync::Arc;

use ollmlx_proto::limits::{INCIDENT_OVER_MS, INCIDENT_STAGGER_MS, INCIDENT_WINDOW_MS};

use super::model::Model;
use super::{Effect, Outbox, Scheduler};
use crate::catalog::ModelRef;

use crate::types::{Cause, Mono};

/// That a model died with others; until a process of it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    number: u64,
    /// The first of the deaths.
    since: Mono,
}

impl Membership {
    fn until(self) -> Mono {
        self.since.plus_ms(INCIDENT_OVER_MS)
    }
}

/// Deaths of one class within the window.
#[derive(Clone, Debug)]
struct Group {
    class: &'static str,
    since: Mono,
    /// Once it is an incident.
    number: Option<u64>,
    /// In order of their deaths.
    models: Vec<Arc<ModelRef>>,
}

/// Groups that may still grow; of each class one at most.
#[derive(Debug, Default)]
pub(super) struct Incidents(Vec<Group>);

impl Incidents {
    /// The group of a death. Those whose time is over are gone by now.
    fn join(&mut self, model: &Arc<ModelRef>, class: &'static str, now: Mono) -> Option<&mut Group> {
        if !self.0.iter().any(|group| group.class == class) {
            self.0.push(Group { class, since: now, number: None, models: Vec::new() });
        }
        let group = self.0.iter_mut().find(|group| group.class == class)?;
        if !group.models.iter().any(|known| known.id == model.id) {
            group.models.push(Arc::clone(model));
        }
        Some(group)
    }

    /// Takes those out that can't grow any more.
    fn over(&mut self, now: Mono) -> Vec<Group> {
        let (over, open) = std::mem::take(&mut self.0).into_iter().partition(|group| ends(group) <= now);
        self.0 = open;
        over
    }

    /// When the first of those is to be told that are incidents.
    pub(super) fn deadline(&self) -> Option<Mono> {
        self.0.iter().filter(|group| group.number.is_some()).map(ends).min()
    }
}

fn ends(group: &Group) -> Mono {
    group.since.plus_ms(INCIDENT_WINDOW_MS)
}

/// Whether such a death counts against those that were present.
fn is_evidence(why: &Cause) -> bool {
    *why != Cause::Asked && !why.is_from_outside() && !why.is_memory()
}

/// Whether what ended it may have ended others as well.
fn may_be_shared(why: &Cause) -> bool {
    let own = matches!(why, Cause::Asked | Cause::Leaked | Cause::SpawnFailed(_) | Cause::HelloRefused(_));
    !own && !why.is_memory() && !why.is_permanent()
}

impl Scheduler {
    /// Looks whether the death that was recorded last for this model is one of several.
    pub(super) fn relate(&mut self, at: usize, why: &Cause, out: &mut Outbox) {
        if self.leaving || !may_be_shared(why) {
            return;
        }
        self.tell_incidents(self.now, out);
        let Some(group) = self.incidents.join(&self.models[at].model, why.class(), self.now) else { return };
        if group.models.len() < 2 {
            return;
        }
        if group.number.is_none() {
            self.totals.incidents += 1;
        }
        let number = *group.number.get_or_insert(self.totals.incidents);
        let Group { class, since, models, .. } = group.clone();
        for member in models {
            let Ok(place) = self.find(&member.id) else { continue };
            let model = &mut self.models[place];
            let present = model.deaths.share(number, class, since);
            if is_evidence(why) {
                present.into_iter().for_each(|request| model.acquit(request));
            }
            if place == at || model.ready.is_none() {
                model.incident = Some(Membership { number, since });
            }
        }
    }

    /// Whether this death is not the first of its kind just now, and another model's was before.
    pub(super) fn dies_with_others(&self, at: usize, why: &Cause) -> bool {
        let is_open = |group: &&Group| group.class == why.class() && self.now < ends(group);
        let others = self.incidents.0.iter().filter(is_open).flat_map(|group| &group.models);
        may_be_shared(why) && others.into_iter().any(|model| model.id != self.models[at].id)
    }

    /// One line for each incident that nobody can join any more.
    pub(super) fn tell_incidents(&mut self, now: Mono, out: &mut Outbox) {
        for group in self.incidents.over(now) {
            let Some(number) = group.number else { continue };
            let models = group.models.iter().map(|model| model.name.clone()).collect();
            out.push(Effect::Incident { number, cause: group.class, models });
        }
    }

    /// Until when a model without a process waits for one that died with it and loads.
    pub(super) fn held_until(&self, model: &Model) -> Option<Mono> {
        let own = model.incident?;
        let loads = self.models.iter().filter(|other| other.incident == Some(own) && other.state.is_starting());
        let until = loads.map(|other| other.started.plus_ms(INCIDENT_STAGGER_MS)).max()?.min(own.until());
        (until > self.now).then_some(until)
    }

    /// Those that died together change places among themselves: the one that most clients wait for goes first.
    pub(super) fn rank_incidents(&self, line: &mut [(Mono, usize)]) {
        let number = |at: usize| self.models[at].incident.filter(|own| own.until() > self.now).map(|own| own.number);
        let mut numbers: Vec<u64> = line.iter().filter_map(|&(_, at)| number(at)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for incident in numbers {
            let places: Vec<usize> = (0..line.len()).filter(|&place| number(line[place].1) == Some(incident)).collect();
            let mut members: Vec<(Mono, usize)> = places.iter().map(|&place| line[place]).collect();
            members.sort_by_key(|&(arrived, at)| (Reverse(self.models[at].queue.len()), arrived, at));
            for (place, member) in places.into_iter().zip(members) {
                line[place] = member;
            }
        }
    }
}
