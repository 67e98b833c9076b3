//! Places on the socket: nobody who reads keeps out who asks how the agent is, or tells it something.
//!
//! Every answer closes its connection, so that a client has a place for one
//! request. Until its request is complete it has one among those who are still
//! asking, where the oldest makes room for the newest: idle clients keep nobody
//! out. Then it has one of its [`Kind`]. Short answers (status, counters,
//! confirm, metrics) make room in the same way; long ones are refused when all
//! their places are taken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::peer::Limits;

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing yet: its request is not complete.
    Asking,
    /// How the agent is, or that it does something: answered at once, whoever else asks what.
    Control,
    /// Something that takes work: an explanation, what was seen.
    Question,
    /// Many rows.
    Listing,
    /// Verdicts as they come.
    Follower,
}

impl Kind {
    /// True if the oldest makes room.
    const fn makes_room(self) -> bool {
        match self {
            Self::Asking | Self::Control => true,
            Self::Question | Self::Listing | Self::Follower => false,
        }
    }

    /// The words for those who have the places.
    const fn words(self) -> &'static str {
        match self {
            Self::Asking | Self::Control => "clients",
            Self::Question => "questions are being answered",
            Self::Listing => "lists are being read",
            Self::Follower => "clients follow verdicts",
        }
    }
}

/// All places of the kind are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{places} {} already, which is as many as the agent serves: try again when one has ended", kind.words())]
pub(super) struct Full {
    kind: Kind,
    places: usize,
}

/// Everybody who is connected.
#[derive(Debug)]
pub(super) struct Seats {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Raised with every client.
    last: u64,
    /// By number, which is by age.
    clients: BTreeMap<u64, (Kind, Option<oneshot::Sender<()>>)>,
}

impl Taken {
    fn of(&self, kind: Kind) -> usize {
        let clients = self.clients.values();
        clients.filter(|(of, _)| *of == kind).count()
    }

    /// Hangs up on the oldest of a kind.
    fn hang_up_oldest(&mut self, kind: Kind) {
        let mut clients = self.clients.iter();
        let oldest = clients.find(|(_, (of, _))| *of == kind);
        let oldest = oldest.map(|(number, _)| *number);
        let oldest = oldest.and_then(|number| self.clients.remove(&number));
        if let Some((_, Some(hang_up))) = oldest {
            // It may just have left.
            let _ = hang_up.send(());
        }
    }
}

/// A client's place. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    seats: Arc<Seats>,
}

impl Seats {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            taken: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for somebody who connects, and what says that it is lost. Also whether somebody else had to go.
    pub(super) fn sit_down(self: &Arc<Self>) -> (Seat, oneshot::Receiver<()>, bool) {
        let (hang_up, hung_up) = oneshot::channel();
        let mut taken = self.lock();
        let is_full = taken.of(Kind::Asking) >= self.limits.asking;
        if is_full {
            taken.hang_up_oldest(Kind::Asking);
        }
        taken.last = taken.last.wrapping_add(1);
        let number = taken.last;
        taken.clients.insert(number, (Kind::Asking, Some(hang_up)));
        drop(taken);
        let seat = Seat {
            number,
            seats: Arc::clone(self),
        };
        (seat, hung_up, is_full)
    }
}

impl Seat {
    /// Takes a place of the kind that the client's request is of.
    ///
    /// # Errors
    ///
    /// There is none; the client keeps its place among those who ask until it has its answer.
    pub(super) fn take(&self, kind: Kind) -> Result<(), Full> {
        let places = self.seats.limits.places(kind);
        let mut taken = self.seats.lock();
        if taken.of(kind) >= places {
            if !kind.makes_room() {
                return Err(Full { kind, places });
            }
            taken.hang_up_oldest(kind);
        }
        if let Some((of, _)) = taken.clients.get_mut(&self.number) {
            *of = kind;
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().clients.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Limits = Limits {
        asking: 2,
        control: 2,
        questions: 2,
        listings: 2,
        followers: 2,
        ..Limits::DEFAULT
    };

    #[test]
    fn the_oldest_idle_client_makes_room_for_the_newest() {
        let seats = Seats::new(TWO);
        let mut clients: Vec<_> = (0..4).map(|_| seats.sit_down()).collect();
        let is_lost = |(_, hung_up, _): &mut (Seat, oneshot::Receiver<()>, bool)| {
            hung_up.try_recv() == Ok(())
        };
        let lost: Vec<bool> = clients.iter_mut().map(is_lost).collect();
        assert_eq!(lost, [true, true, false, false]);
        // A client that has asked is not idle any more.
        clients[2].0.take(Kind::Control).expect("a place");
        let mut others: Vec<_> = (0..2).map(|_| seats.sit_down()).collect();
        assert!(!is_lost(&mut clients[2]));
        assert!(is_lost(&mut clients[3]));
        assert!(!others.iter_mut().any(is_lost));
    }

    #[test]
    fn long_answers_are_refused_where_short_ones_make_room() {
        let seats = Seats::new(TWO);
        for kind in [Kind::Question, Kind::Listing, Kind::Follower] {
            let take = || {
                let (seat, hung_up, _) = seats.sit_down();
                seat.take(kind).map(|()| (seat, hung_up))
            };
            let first = take().expect("a place");
            let second = take().expect("a place");
            let full = take().expect_err("none is left");
            assert!(full.to_string().starts_with("2 "), "{full}");
            // Control has places of its own.
            let (control, mut hung_up, _) = seats.sit_down();
            control.take(Kind::Control).expect("a place");
            assert!(hung_up.try_recv().is_err());
            drop(first);
            let third = take().expect("the place of the first");
            drop((second, third));
        }
        assert!(seats.lock().clients.is_empty());
        let mut control = Vec::new();
        for _ in 0..5 {
            let (seat, hung_up, _) = seats.sit_down();
            seat.take(Kind::Control).expect("a place");
            control.push((seat, hung_up));
        }
        let lost = control.iter_mut().map(|(_, hung_up)| hung_up.try_recv());
        assert_eq!(lost.filter(|lost| *lost == Ok(())).count(), 3);
    }
}
