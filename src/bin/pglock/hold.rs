//! What a command needs to run: a key, a permit or the leadership. How it is got, and given back.

use std::time::Duration;

use pglock::{
    Config, Election, Error, Fence, Key, Leadership, LockManager, Mode, Permit, Result, Semaphore,
    Session,
};
use tokio::time::timeout;

use crate::args::Patience;

/// How long it may take to tell the server of an end that it notices by itself, later.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is asked for, held, perhaps lost, and given back.
pub(crate) enum Claim {
    /// On a session of its own, as lean as it gets.
    Key {
        session: Session,
        key: Key,
        mode: Mode,
    },
    Permit {
        manager: LockManager,
        semaphore: Semaphore,
        permit: Option<Permit>,
    },
    Leadership {
        manager: LockManager,
        election: Election,
        leadership: Option<Leadership>,
    },
}

/// How asking for it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was free.
    Free,
    /// Somebody else had it before.
    Waited,
    /// It was not free, or not in time.
    Busy,
}

impl Claim {
    pub(crate) async fn key(config: &Config, key: Key, mode: Mode) -> Result<Self> {
        Ok(Self::Key { session: Session::connect(config).await?, key, mode })
    }

    pub(crate) fn permit(config: Config, name: &str, permits: u32) -> Self {
        let manager = LockManager::new(config);
        let semaphore = manager.semaphore(name, permits);
        Self::Permit { manager, semaphore, permit: None }
    }

    pub(crate) fn leadership(config: Config, key: Key) -> Self {
        let manager = LockManager::new(config);
        let election = manager.election(key);
        Self::Leadership { manager, election, leadership: None }
    }

    /// Asks for it, and waits as long as there is patience. Dropping this future withdraws the request.
    pub(crate) async fn acquire(&mut self, patience: Patience) -> Result<Asked> {
        if self.try_acquire().await? {
            return Ok(Asked::Free);
        }
        let acquired = match patience {
            Patience::None => false,
            patience => self.wait(patience).await?,
        };
        Ok(if acquired { Asked::Waited } else { Asked::Busy })
    }

    async fn try_acquire(&mut self) -> Result<bool> {
        match self {
            Self::Key { session, key, mode } => session.try_lock(*key, *mode).await,
            Self::Permit { semaphore, permit, .. } => {
                *permit = semaphore.try_acquire().await?;
                Ok(permit.is_some())
            }
            Self::Leadership { election, leadership, .. } => {
                *leadership = election.try_campaign().await?;
                Ok(leadership.is_some())
            }
        }
    }

    async fn wait(&mut self, patience: Patience) -> Result<bool> {
        // A time too far for the clock is no limit.
        let time = if let Patience::For(time) = patience { time } else { Duration::MAX };
        match self {
            Self::Key { session, key, mode } => session.lock_timeout(*key, *mode, time).await,
            Self::Permit { semaphore, permit, .. } => {
                *permit = semaphore.acquire_timeout(time).await?;
                Ok(permit.is_some())
            }
            Self::Leadership { election, leadership, .. } => {
                *leadership = election.campaign_timeout(time).await?;
                Ok(leadership.is_some())
            }
        }
    }

    /// Completes when it is lost, and says why. Has to be awaited for a lease to go on.
    pub(crate) async fn lost(&mut self) -> Error {
        match self {
            Self::Key { session, .. } => session.lost().await,
            Self::Permit { permit: Some(permit), .. } => permit.lost().await,
            Self::Leadership { leadership: Some(leadership), .. } => leadership.lost().await,
            Self::Permit { permit: None, .. } | Self::Leadership { leadership: None, .. } => {
                std::future::pending().await
            }
        }
    }

    /// A number higher than those of all that held it before.
    pub(crate) async fn fence(&mut self) -> Result<Option<Fence>> {
        match self {
            // One more level of what is held already.
            Self::Key { session, key, mode } => session.try_lock_fenced(*key, *mode).await,
            Self::Permit { permit: Some(permit), .. } => permit.fencing_token().await.map(Some),
            Self::Leadership { leadership: Some(leadership), .. } => {
                leadership.fencing_token().map(Some)
            }
            Self::Permit { permit: None, .. } | Self::Leadership { leadership: None, .. } => {
                Ok(None)
            }
        }
    }

    pub(crate) fn slot(&self) -> Option<u32> {
        match self {
            Self::Permit { permit: Some(permit), .. } => Some(permit.slot()),
            _ => None,
        }
    }

    /// Gives it back. An error of a lost session says that it was lost before.
    pub(crate) async fn release(self) -> Result<()> {
        match self {
            Self::Key { session, .. } => session.close().await,
            Self::Permit { manager, permit, .. } => {
                if let Some(permit) = permit {
                    permit.release().await?;
                }
                manager.close().await
            }
            Self::Leadership { manager, leadership, .. } => {
                if let Some(leadership) = leadership {
                    leadership.resign().await?;
                }
                manager.close().await
            }
        }
    }

    /// Gives it back, or gives it up, where something else is to be told. The end of this process does the
    /// same, if that fails.
    pub(crate) async fn abandon(self) {
        let _ = timeout(FAREWELL, self.release()).await;
    }
}
