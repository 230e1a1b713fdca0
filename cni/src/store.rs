//! What is attached and which addresses are held, on tmpfs under `<run-dir>/ipam`. After a loss of power no pod namespace
//! exists, so empty is right and nothing is ever synced.
//!
//! ```text
//! attachments/<id>:<ifname>   JSON, complete when it appears: what the agent watches
//! pending/<id>:<ifname>       the same file while its ADD runs, locked by it; without a lock it is a crash, or a DEL
//! owners/<id>:<ifname>     -> "<network>/<host interface>/<address>,<address>"
//! addresses/<address>      -> "<id>:<ifname>"
//! cooling/<quarter>/<address> -> epoch seconds of the release, in a directory per quarter of a minute
//! cursor4, cursor6         -> the address given last
//! lock                        held while addresses are chosen or released, for some microseconds
//! ```
//!
//! A symlink is made whole or not at all and never over another one. SIGKILL may come between any two of them, so the
//! order is: owner before its addresses when taking, after them when releasing. Then whatever a crash leaves is found by
//! container id and interface name, which is all that DEL has. Knows nothing of links and namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use crate::ipam::PoolUsage;
use crate::ipam::{self, Choice, Pool, Standing};
pub use crate::names::Key;

/// Longest container id, bytes: with ':' and an interface name it has to fit a file name.
pub const MAX_CONTAINER_ID: usize = 239;

/// Seconds whose releases share a directory under `cooling`; a directory goes when all in it have rested.
const QUARTER: u64 = 15;

/// Addresses that are looked at one by one before the whole directory is read.
const PATIENCE: u128 = 64;

/// Rested addresses that one operation forgets at most, so that none pays for all.
const PURGE: usize = 256;

/// One interface of one pod, as its ADD made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// CNI_CONTAINERID: the sandbox.
    pub container_id: String,
    /// CNI_IFNAME: the interface's name inside.
    pub ifname: String,
    /// Name of the network in the runtime's configuration.
    #[serde(default)]
    pub network: Option<String>,
    /// Path of the network namespace.
    #[serde(default)]
    pub netns: Option<String>,
    /// K8S_POD_NAMESPACE.
    #[serde(default)]
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    #[serde(default)]
    pub pod: Option<String>,
    /// K8S_POD_UID.
    #[serde(default)]
    pub uid: Option<String>,
    /// The host end of the veth.
    pub interface: String,
    /// The pod's addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// When it was made, epoch seconds.
    pub created: u64,
}

/// What is held by an attachment or by one that was never finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Name of the network in the runtime's configuration.
    pub network: String,
    /// The host end of the veth.
    pub interface: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// What an attachment wants to hold.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Whose.
    pub key: &'a Key,
    /// Name of the network.
    pub network: &'a str,
    /// Name of the host end to come.
    pub interface: &'a str,
    /// These addresses and no others of their families.
    pub fixed: &'a [IpAddr],
    /// One of each of these; none is empty.
    pub pools: &'a [Pool],
}

/// Why the store could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system's complaint.
    #[error("{path}: {source}")]
    Io {
        /// What was looked at.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Every address of a family is held.
    #[error("all {total} {family} addresses of this node are held")]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// How many there are.
        total: u128,
    },
    /// Somebody else has the fixed address.
    #[error("{address} is held by {holder}")]
    Held {
        /// The address.
        address: IpAddr,
        /// Container id and interface.
        holder: String,
    },
    /// The attachment is complete.
    #[error("{0} is attached already")]
    Attached(Key),
    /// An ADD of the same attachment runs.
    #[error("another ADD of {0} is running")]
    Busy(Key),
}

/// The directory. Cheap to clone; holds nothing open.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens `<run_dir>/ipam` and makes what is not there.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(run_dir: &Path) -> Result<Self, StoreError> {
        let dir = run_dir.join("ipam");
        for room in ["attachments", "pending", "owners", "addresses", "cooling"] {
            let path = dir.join(room);
            match make_dir(&path, false) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => at(&path, make_dir(&path, true))?,
                Err(source) => return Err(StoreError::Io { path, source }),
            }
        }
        Ok(Self { dir })
    }

    /// Opens `<run_dir>/ipam` if there is one: DEL makes nothing.
    pub fn existing(run_dir: &Path) -> Option<Self> {
        let dir = run_dir.join("ipam");
        dir.join("owners").is_dir().then_some(Self { dir })
    }

    /// The one directory to watch: an entry appears in it, complete, by link(2) when a pod's link and addresses are
    /// ready, and is unlinked when they are gone.
    pub fn watch_dir(&self) -> PathBuf {
        self.dir.join("attachments")
    }

    /// All attachments, ordered by container id and interface. What can't be read as one is left out: it is not ours.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory can't be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, StoreError> {
        let keys = self.names("attachments")?;
        Ok(keys.iter().filter_map(|name| read_attachment(&self.watch_dir().join(name))).collect())
    }

    /// One attachment.
    pub fn attachment(&self, key: &Key) -> Option<Attachment> {
        read_attachment(&self.attachment_path(key))
    }

    /// Every attachment that holds anything here, finished or not.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn keys(&self) -> Result<BTreeSet<Key>, StoreError> {
        let mut keys = BTreeSet::new();
        for room in ["owners", "attachments", "pending"] {
            keys.extend(self.names(room)?.iter().filter_map(|name| Key::parse(name)));
        }
        Ok(keys)
    }

    /// What an attachment holds, finished or not.
    pub fn owned(&self, key: &Key) -> Option<Owned> {
        let target = read_link(&self.owner_path(key))?;
        let mut parts = target.splitn(3, '/');
        let (network, interface, ips) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Owned {
            network: network.to_owned(),
            interface: interface.to_owned(),
            ips: ips.split(',').filter_map(|ip| ip.parse().ok()).collect(),
        })
    }

    /// Since when (epoch seconds, by the file system's clock) the attachment holds something.
    pub fn owned_since(&self, key: &Key) -> Option<u64> {
        let paths = [self.owner_path(key), self.pending_path(key), self.attachment_path(key)];
        let modified = paths.iter().find_map(|p| fs::symlink_metadata(p).and_then(|m| m.modified()).ok())?;
        modified.duration_since(std::time::UNIX_EPOCH).ok().map(|d| d.as_secs())
    }

    /// How full each range is; `now` in epoch seconds.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn pools(&self, cidrs: &[IpNetwork], now: u64) -> Result<Vec<PoolUsage>, StoreError> {
        let held = self.held()?;
        let cooling = self.cooling()?;
        Ok(cidrs.iter().map(|cidr| ipam::usage(*cidr, &held, &cooling, now)).collect())
    }

    /// Addresses that were given back and rest, each with the epoch second from which on it is free again; `now` likewise.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn resting(&self, now: u64) -> Result<Vec<(IpAddr, u64)>, StoreError> {
        let held: BTreeSet<IpAddr> = self.held()?.into_iter().collect();
        let resting = self.cooling()?.into_iter();
        Ok(resting
            .filter(|(ip, since)| ipam::is_cooling(*since, now) && !held.contains(ip))
            .map(|(ip, since)| (ip, since + ipam::COOL_DOWN))
            .collect())
    }

    /// Who holds addresses without being attached, or being attached by now: an ADD or a DEL that crashed. The sweep
    /// takes them when nothing of them is left in the kernel.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn unfinished(&self) -> Result<Vec<(Key, Owned)>, StoreError> {
        let keys = self.keys()?.into_iter();
        let unfinished = keys.filter(|key| {
            let marked = self.pending_path(key).exists() || !self.attachment_path(key).exists();
            marked && !self.is_busy(key)
        });
        Ok(unfinished.filter_map(|key| self.owned(&key).map(|owned| (key, owned))).collect())
    }

    /// Begins an ADD: from here on a crash is told from a finished attachment.
    ///
    /// What an ADD or a DEL that crashed has left keeps its entries; the caller repairs it when [`Pending::crashed`] says so.
    ///
    /// # Errors
    /// [`StoreError::Attached`], [`StoreError::Busy`] or [`StoreError::Io`].
    pub fn begin(&self, key: &Key) -> Result<Pending, StoreError> {
        let path = self.pending_path(key);
        let (file, leftover) = match create_new().open(&path) {
            Ok(file) => (file, false),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (self.take_over(key)?, true),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        lock_now(&file, key, &path)?;
        if !leftover && self.attachment_path(key).exists() {
            drop(fs::remove_file(&path));
            return Err(StoreError::Attached(key.clone()));
        }
        let crashed = leftover || fs::symlink_metadata(self.owner_path(key)).is_ok();
        Ok(Pending { store: self.clone(), key: key.clone(), file, crashed })
    }

    /// Puts a mark of our own in the place of one that nobody holds. Under the store's lock: between looking at the old
    /// mark and removing it nobody else may have put a third one there.
    fn take_over(&self, key: &Key) -> Result<File, StoreError> {
        let path = self.pending_path(key);
        let _lock = self.lock()?;
        if let Ok(leftover) = File::open(&path) {
            lock_now(&leftover, key, &path)?;
            remove(&path)?;
        }
        match create_new().open(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(StoreError::Busy(key.clone())),
            other => at(&path, other),
        }
    }

    /// Is an ADD of this attachment running?
    pub fn is_busy(&self, key: &Key) -> bool {
        File::open(self.pending_path(key))
            .is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Tells an ADD of this attachment that is running to give up, and what to wait for. `None`: none is.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn interrupt(&self, key: &Key) -> Result<Option<Interrupted>, StoreError> {
        let path = self.pending_path(key);
        let _lock = self.lock()?;
        let Ok(file) = File::open(&path) else { return Ok(None) };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => remove(&path).map(|()| Some(Interrupted(file))),
            Ok(()) => Ok(None),
            Err(TryLockError::Error(source)) => Err(StoreError::Io { path, source }),
        }
    }

    /// Takes the addresses, all or none; `now` in epoch seconds. IPv4 comes first in the answer.
    ///
    /// # Errors
    /// [`StoreError::Exhausted`], [`StoreError::Held`] or [`StoreError::Io`]; nothing is held then.
    pub fn reserve(&self, wanted: &Wanted<'_>, now: u64) -> Result<Vec<IpAddr>, StoreError> {
        let _lock = self.lock()?;
        self.purge(now);
        let mut ips = Vec::new();
        for address in wanted.fixed {
            if let Some(holder) = read_link(&self.address_path(*address)) {
                return Err(StoreError::Held { address: *address, holder });
            }
            ips.push(*address);
        }
        let quarters: Vec<PathBuf> =
            self.names("cooling")?.into_iter().map(|name| self.dir.join("cooling").join(name)).collect();
        for pool in wanted.pools {
            ips.push(self.choose(pool, &quarters, now)?);
        }
        ips.sort();
        if let Err(e) = self.take(wanted, &ips) {
            self.let_go(wanted.key, &ips);
            return Err(e);
        }
        Ok(ips)
    }

    /// Gives back all that the attachment holds, by its identity and never by today's ranges; the addresses rest from
    /// `now` (epoch seconds) on. No error when it holds nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn release(&self, key: &Key, now: u64) -> Result<(), StoreError> {
        if fs::symlink_metadata(self.owner_path(key)).is_err() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.purge(now);
        if let Some(owned) = self.owned(key) {
            let quarter = self.dir.join("cooling").join((now / QUARTER).to_string());
            for ip in &owned.ips {
                if read_link(&self.address_path(*ip)).as_deref() != Some(key.to_string().as_str()) {
                    continue;
                }
                let rest = quarter.join(ip.to_string());
                let made = match symlink(now.to_string(), &rest) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        make_dir(&quarter, false).and_then(|()| symlink(now.to_string(), &rest))
                    }
                    // Given while cooling, and back in the same quarter: it rests from now on.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        fs::remove_file(&rest).and_then(|()| symlink(now.to_string(), &rest))
                    }
                    other => other,
                };
                at(&rest, made)?;
                remove(&self.address_path(*ip))?;
            }
        }
        remove(&self.owner_path(key))
    }

    /// Marks an attachment as unfinished, before it is taken apart: a DEL that is killed is a crash like another. No
    /// error when there is no attachment, or when its ADD still runs.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn condemn(&self, key: &Key) -> Result<(), StoreError> {
        if !self.attachment_path(key).exists() {
            return Ok(());
        }
        let path = self.pending_path(key);
        match create_new().open(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(StoreError::Io { path, source: e }),
            _ => Ok(()),
        }
    }

    /// Takes the attachment out of the watched directory. No error when it is not there.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn retract(&self, key: &Key) -> Result<(), StoreError> {
        remove(&self.attachment_path(key))
    }

    /// Forgets an ADD that will not finish. No error when there is none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn abandon(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.pending_path(key);
        if !path.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        remove(&path)
    }

    fn choose(&self, pool: &Pool, quarters: &[PathBuf], now: u64) -> Result<IpAddr, StoreError> {
        let v4 = pool.after(None).is_some_and(|ip| ip.is_ipv4());
        let last = read_link(&self.cursor_path(v4)).and_then(|ip| ip.parse().ok());
        let rested = |since: Option<u64>| match since {
            Some(since) if ipam::is_cooling(since, now) => Standing::Cooling(since),
            _ => Standing::Free,
        };
        let mut choice = pool.choose(last, PATIENCE, |ip| {
            if fs::symlink_metadata(self.address_path(ip)).is_ok() {
                return Standing::Held;
            }
            let name = ip.to_string();
            let since = quarters.iter().filter_map(|q| read_link(&q.join(&name))?.parse().ok()).max();
            rested(since)
        });
        if choice == Choice::Unclear {
            let held: BTreeSet<IpAddr> = self.held()?.into_iter().collect();
            let cooling = self.cooling()?;
            choice = pool.choose(last, u128::MAX, |ip| match held.contains(&ip) {
                true => Standing::Held,
                false => rested(cooling.get(&ip).copied()),
            });
        }
        match choice {
            Choice::Address(ip) => Ok(ip),
            Choice::Exhausted | Choice::Unclear => {
                Err(StoreError::Exhausted { family: if v4 { "IPv4" } else { "IPv6" }, total: pool.total() })
            }
        }
    }

    fn take(&self, wanted: &Wanted<'_>, ips: &[IpAddr]) -> Result<(), StoreError> {
        let list: Vec<String> = ips.iter().map(ToString::to_string).collect();
        let owner = self.owner_path(wanted.key);
        let target = format!("{}/{}/{}", wanted.network, wanted.interface, list.join(","));
        at(&owner, symlink(target, &owner))?;
        for ip in ips {
            let path = self.address_path(*ip);
            at(&path, symlink(wanted.key.to_string(), &path))?;
        }
        for ip in ips.iter().filter(|ip| !wanted.fixed.contains(ip)) {
            let cursor = self.cursor_path(ip.is_ipv4());
            remove(&cursor)?;
            at(&cursor, symlink(ip.to_string(), &cursor))?;
        }
        Ok(())
    }

    /// Undoes a part of [`Store::take`] before anyone saw it.
    fn let_go(&self, key: &Key, ips: &[IpAddr]) {
        for ip in ips {
            let path = self.address_path(*ip);
            if read_link(&path).as_deref() == Some(key.to_string().as_str()) {
                drop(fs::remove_file(path));
            }
        }
        drop(fs::remove_file(self.owner_path(key)));
    }

    /// Forgets addresses that have rested. A failure is tried again by the next operation.
    fn purge(&self, now: u64) {
        let mut budget = PURGE;
        for name in self.names("cooling").unwrap_or_default() {
            let begin = name.parse::<u64>().unwrap_or(0).saturating_mul(QUARTER);
            let rested = begin.saturating_add(QUARTER + ipam::COOL_DOWN) <= now;
            let set_back = begin > now.saturating_add(QUARTER);
            if !rested && !set_back {
                continue;
            }
            let quarter = self.dir.join("cooling").join(&name);
            for entry in fs::read_dir(&quarter).into_iter().flatten().flatten() {
                if budget == 0 {
                    return;
                }
                budget -= 1;
                drop(fs::remove_file(entry.path()));
            }
            drop(fs::remove_dir(&quarter));
        }
    }

    fn held(&self) -> Result<Vec<IpAddr>, StoreError> {
        Ok(self.names("addresses")?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Address -> last release.
    fn cooling(&self) -> Result<BTreeMap<IpAddr, u64>, StoreError> {
        let mut out = BTreeMap::new();
        for quarter in self.names("cooling")? {
            let dir = self.dir.join("cooling").join(quarter);
            // Gone in the meantime: all in it have rested.
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let ip = entry.file_name().to_str().and_then(|name| name.parse().ok());
                let since = read_link(&entry.path()).and_then(|s| s.parse().ok());
                if let (Some(ip), Some(since)) = (ip, since) {
                    let latest: &mut u64 = out.entry(ip).or_insert(since);
                    *latest = since.max(*latest);
                }
            }
        }
        Ok(out)
    }

    /// File names in a room, in order.
    pub(crate) fn names(&self, room: &str) -> Result<Vec<String>, StoreError> {
        let path = self.dir.join(room);
        let mut names = Vec::new();
        for entry in at(&path, fs::read_dir(&path))? {
            if let Ok(name) = at(&path, entry)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Released when the file is closed, by a crash too.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join("lock");
        let file =
            at(&path, OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path))?;
        at(&path, file.lock())?;
        Ok(file)
    }

    fn attachment_path(&self, key: &Key) -> PathBuf {
        self.dir.join("attachments").join(key.to_string())
    }

    fn pending_path(&self, key: &Key) -> PathBuf {
        self.dir.join("pending").join(key.to_string())
    }

    fn owner_path(&self, key: &Key) -> PathBuf {
        self.dir.join("owners").join(key.to_string())
    }

    fn address_path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join("addresses").join(ip.to_string())
    }

    fn cursor_path(&self, v4: bool) -> PathBuf {
        self.dir.join(if v4 { "cursor4" } else { "cursor6" })
    }
}

/// An ADD under way. The lock on its file ends with the process, however that ends.
#[derive(Debug)]
pub struct Pending {
    store: Store,
    key: Key,
    file: File,
    crashed: bool,
}

impl Pending {
    /// Did an earlier ADD or DEL of the same attachment end without finishing?
    pub fn crashed(&self) -> bool {
        self.crashed
    }

    /// Puts the attachment into the watched directory, whole and at once.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn publish(&mut self, attachment: &Attachment) -> Result<(), StoreError> {
        let pending = self.store.pending_path(&self.key);
        let text = serde_json::to_vec(attachment).expect("a struct of strings and numbers is JSON");
        at(&pending, self.file.write_all(&text))?;
        let path = self.store.attachment_path(&self.key);
        at(&path, fs::hard_link(&pending, &path))
    }

    /// `false`: a DEL has told this ADD to give up.
    pub fn is_wanted(&self) -> bool {
        self.store.pending_path(&self.key).exists()
    }

    /// Makes the attachment a finished one. `false`: a DEL came first and took everything away.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn finish(self) -> Result<bool, StoreError> {
        let path = self.store.pending_path(&self.key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }
}

/// An ADD that was told to give up.
#[derive(Debug)]
pub struct Interrupted(File);

impl Interrupted {
    /// Has it ended? It takes all that it made away before.
    pub fn ended(&self) -> bool {
        self.0.try_lock().is_ok()
    }
}

/// Runtimes start plugins with any umask, also none: nobody else may write here.
fn make_dir(path: &Path, parents: bool) -> io::Result<()> {
    fs::DirBuilder::new().recursive(parents).mode(0o755).create(path)
}

fn create_new() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    options
}

pub(crate) fn read_attachment(path: &Path) -> Option<Attachment> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn read_link(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.into_os_string().into_string().ok()
}

fn lock_now(file: &File, key: &Key, path: &Path) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::Busy(key.clone())),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { path: path.to_owned(), source }),
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => at(path, other),
    }
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, StoreError> {
    result.map_err(|source| StoreError::Io { path: path.to_owned(), source })
}
