use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::Limits;

/// As long as this a connection may stay before it has to make room: a request of an honest peer
/// is answered by then, also in a rush.
const GRACE: Duration = Duration::from_secs(1);

/// Places for connections. Who has shown no certificate shares those of all who have not, the
/// oldest of whom goes when they are full: whoever comes gets in, and a flood pushes out itself.
/// Who has shown one has a place where nobody else comes.
#[derive(Debug)]
pub(super) struct Places {
    anonymous: Mutex<BTreeMap<u64, Guest>>,
    next: Mutex<u64>,
    room: usize,
    grace: Duration,
    left: Notify,
    authenticated: Arc<Semaphore>,
}

#[derive(Debug)]
struct Guest {
    since: Instant,
    leave: Arc<Notify>,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            anonymous: Mutex::default(),
            next: Mutex::default(),
            room: limits.anonymous.max(1),
            grace: GRACE,
            left: Notify::new(),
            authenticated: Arc::new(Semaphore::new(limits.authenticated)),
        })
    }

    /// A place for a connection that has shown no certificate, or not yet.
    pub(super) async fn enter(self: &Arc<Self>) -> Place {
        loop {
            let left = self.left.notified();
            let wait = match self.try_enter() {
                Ok(place) => return place,
                Err(wait) => wait,
            };
            tokio::select! {
                () = left => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Or the time until the oldest has to make room.
    fn try_enter(self: &Arc<Self>) -> Result<Place, Duration> {
        let mut anonymous = self.guests();
        if anonymous.len() >= self.room
            && let Some(oldest) = anonymous.first_entry()
        {
            let stayed = oldest.get().since.elapsed();
            if stayed < self.grace {
                return Err(self.grace.saturating_sub(stayed));
            }
            oldest.remove().leave.notify_one();
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        let leave = Arc::new(Notify::new());
        let guest = Guest {
            since: Instant::now(),
            leave: Arc::clone(&leave),
        };
        anonymous.insert(*next, guest);
        Ok(Place {
            places: Arc::clone(self),
            number: *next,
            leave,
            authenticated: None,
        })
    }

    fn guests(&self) -> MutexGuard<'_, BTreeMap<u64, Guest>> {
        self.anonymous
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    leave: Arc<Notify>,
    authenticated: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// The peer has shown a certificate. When all places of such peers are taken, it stays where
    /// it is.
    pub(super) fn authenticated(&mut self) {
        let permit = Arc::clone(&self.places.authenticated).try_acquire_owned();
        if let Ok(permit) = permit {
            self.authenticated = Some(permit);
            self.give_up();
        }
    }

    /// Returns when the connection has to make room.
    pub(super) async fn left(&self) {
        self.leave.notified().await;
    }

    fn give_up(&self) {
        let gone = self.places.guests().remove(&self.number);
        if gone.is_some() {
            self.places.left.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::timeout;

    use super::*;

    fn places(anonymous: usize, authenticated: usize, grace: Duration) -> Arc<Places> {
        let limits = Limits {
            anonymous,
            authenticated,
            ..Limits::default()
        };
        let mut places = Arc::into_inner(Places::new(&limits)).unwrap();
        places.grace = grace;
        Arc::new(places)
    }

    async fn has_to_leave(place: &Place) -> bool {
        timeout(Duration::ZERO, place.left()).await.is_ok()
    }

    #[tokio::test]
    async fn the_oldest_without_a_certificate_makes_room() {
        let places = places(2, 1, Duration::ZERO);
        let mut operator = places.enter().await;
        operator.authenticated();
        let first = places.enter().await;
        let second = places.enter().await;
        assert!(!has_to_leave(&first).await, "there was room");
        let third = places.enter().await;
        assert!(has_to_leave(&first).await);
        for stays in [&operator, &second, &third] {
            assert!(!has_to_leave(stays).await);
        }
        // It goes, and nobody else has to for that.
        drop(first);
        assert_eq!(places.guests().len(), 2);
        drop(second);
        let fourth = places.enter().await;
        assert!(!has_to_leave(&third).await && !has_to_leave(&fourth).await);
    }

    #[tokio::test]
    async fn more_operators_than_places_are_guests_like_others() {
        let places = places(1, 1, Duration::ZERO);
        let mut first = places.enter().await;
        first.authenticated();
        let mut second = places.enter().await;
        second.authenticated();
        let _third = places.enter().await;
        assert!(has_to_leave(&second).await);
        assert!(!has_to_leave(&first).await);
    }

    #[tokio::test]
    async fn nobody_is_turned_out_in_a_rush() {
        let places = places(1, 0, Duration::from_secs(3600));
        let first = places.enter().await;
        let mut second = pin!(places.enter());
        assert!(timeout(Duration::ZERO, second.as_mut()).await.is_err());
        assert!(!has_to_leave(&first).await);
        drop(first);
        second.await;
    }
}
