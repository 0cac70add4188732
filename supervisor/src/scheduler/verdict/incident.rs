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

use crate::limits::{INCIDENT_OVER_MS, INCIDENT_STAGGER_MS, INCIDENT_WINDOW_MS};
use ollmlx_proto::ModelId;

use crate::catalog::ModelRef;
use crate::scheduler::effect::Effect;
use crate::scheduler::model::{Membership, Model};
use crate::scheduler::view::View;
use crate::types::Mono;

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

impl Group {
    fn ends(&self) -> Mono {
        self.since.plus_ms(INCIDENT_WINDOW_MS)
    }
}

/// What a death is a part of.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Incident {
    pub(in crate::scheduler) membership: Membership,
    /// All whose workers died, this one included.
    pub(in crate::scheduler) models: Vec<ModelId>,
}

/// Groups that may still grow; of each class one at most.
#[derive(Debug, Default)]
pub(in crate::scheduler) struct Incidents {
    open: Vec<Group>,
    /// Since the start.
    count: u64,
}

impl Incidents {
    /// Notes a death, and says which incident it is a part of, if others have died of the same just now. Those whose time is
    /// over are told of first.
    pub(in crate::scheduler) fn join(
        &mut self,
        model: &Arc<ModelRef>,
        class: &'static str,
        now: Mono,
    ) -> Option<Incident> {
        if !self.open.iter().any(|group| group.class == class) {
            self.open.push(Group { class, since: now, number: None, models: Vec::new() });
        }
        let group = self.open.iter_mut().find(|group| group.class == class)?;
        if !group.models.iter().any(|known| known.id == model.id) {
            group.models.push(Arc::clone(model));
        }
        if group.models.len() < 2 {
            return None;
        }
        self.count += u64::from(group.number.is_none());
        let number = *group.number.get_or_insert(self.count);
        let models = group.models.iter().map(|model| model.id.clone()).collect();
        Some(Incident { membership: Membership { number, since: group.since }, models })
    }

    /// Whether another model's worker has died of such a cause just now.
    pub(in crate::scheduler) fn has_other(&self, model: &ModelId, class: &'static str, now: Mono) -> bool {
        let open = self.open.iter().filter(|group| group.class == class && now < group.ends());
        open.flat_map(|group| &group.models).any(|other| other.id != *model)
    }

    /// One line of the log for each incident that nobody can join any more.
    pub(in crate::scheduler) fn tell(&mut self, now: Mono) -> Vec<Effect> {
        let (over, open) = std::mem::take(&mut self.open).into_iter().partition(|group: &Group| group.ends() <= now);
        self.open = open;
        let told = |group: Group| {
            let models = group.models.iter().map(|model| model.name.clone()).collect();
            Some(Effect::Incident { number: group.number?, cause: group.class, models })
        };
        let over: Vec<Group> = over;
        over.into_iter().filter_map(told).collect()
    }

    /// When the first of those is to be told that are incidents.
    pub(in crate::scheduler) fn deadline(&self) -> Option<Mono> {
        self.open.iter().filter(|group| group.number.is_some()).map(Group::ends).min()
    }

    /// Since the start.
    pub(in crate::scheduler) fn count(&self) -> u64 {
        self.count
    }
}

fn ends(membership: Membership) -> Mono {
    membership.since.plus_ms(INCIDENT_OVER_MS)
}

/// Until when a model without a process waits for one that died with it and loads.
pub(in crate::scheduler) fn held_until(view: View<'_>, model: &Model) -> Option<Mono> {
    let own = model.incident?;
    let loads = view.models.iter().filter(|other| other.incident == Some(own) && other.state.is_starting());
    let until = loads.map(|other| other.process.started.plus_ms(INCIDENT_STAGGER_MS)).max()?.min(ends(own));
    (until > view.now).then_some(until)
}

/// Those that died together change places among themselves: the one that most clients wait for goes first.
pub(in crate::scheduler) fn rank(view: View<'_>, line: &mut [(Mono, usize)]) {
    let number = |at: usize| view.models[at].incident.filter(|own| ends(*own) > view.now).map(|own| own.number);
    let mut numbers: Vec<u64> = line.iter().filter_map(|&(_, at)| number(at)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for incident in numbers {
        let places: Vec<usize> = (0..line.len()).filter(|&place| number(line[place].1) == Some(incident)).collect();
        let mut members: Vec<(Mono, usize)> = places.iter().map(|&place| line[place]).collect();
        members.sort_by_key(|&(arrived, at)| (Reverse(view.models[at].line.len()), arrived, at));
        for (place, member) in places.into_iter().zip(members) {
            line[place] = member;
        }
    }
}
