//! The cluster as the followers of its resources tell it: objects in, updates out.
//!
//! Pure. Knows when everything has been read once, what is wrong at present, how old the state in force is, and which
//! Secrets are referred to from this node. Holds no objects but what it needs for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::closed;
use super::kinds::What;
use super::reflector::Change;
use crate::config::{BgpPeer, LabelSelector, PeerTarget};
use crate::source::manifest;
use crate::source::{Kind, Object, ObjectKey, Problem, Update};

/// A watch that ends is taken up again within a second or so: only what lasts longer makes the state stale.
const GRACE: Duration = Duration::from_secs(5);
/// Objects with something wrong that are named one by one; more are counted.
const NAMED: usize = 100;

/// Who tells: the follower of a resource, or of one Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Follower {
    /// Of all objects of a kind.
    Of(What),
    /// Of the Secret of this name.
    Secret(String),
}

/// What a follower has to tell.
#[derive(Debug)]
pub(super) struct News {
    pub(super) from: Follower,
    pub(super) changes: Vec<Change>,
    /// How it stands now, if that is new.
    pub(super) state: Option<State>,
}

/// How a follower stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// What it has told is what the server has.
    Current,
    /// The server does not have this resource, and so none of its objects.
    Absent {
        /// Something is wrong about that.
        because: Option<String>,
    },
    /// It cannot tell, for this reason; the server itself said so, or could not be reached.
    Failing { reason: String, refused: bool },
}

/// What the source knows.
pub(super) struct Cluster {
    server: String,
    node_name: String,
    namespace: String,
    followers: BTreeMap<Follower, Standing>,
    /// What is wrong with single objects.
    complaints: BTreeMap<ObjectKey, Complaint>,
    /// Labels of this node, which choose its peers.
    labels: Option<BTreeMap<String, String>>,
    /// What names peers with a password: which nodes, which Secret.
    secrets: BTreeMap<ObjectKey, Vec<(Option<LabelSelector>, String)>>,
    /// Problems told last.
    told: Vec<Problem>,
    in_sync: bool,
}

#[derive(Debug, Default)]
struct Standing {
    /// All of it has been told once.
    synced: bool,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    since: Instant,
    /// What is in force may be older than what the server has.
    stale: bool,
}

#[derive(Debug)]
struct Complaint {
    reasons: Vec<String>,
    effect: &'static str,
    stale: bool,
    /// Some version of the object is in force.
    in_force: bool,
}

impl Cluster {
    /// A cluster of which these kinds are to be known.
    pub(super) fn new(
        server: &str,
        node_name: &str,
        namespace: &str,
        kinds: impl IntoIterator<Item = What>,
    ) -> Self {
        Cluster {
            server: server.to_owned(),
            node_name: node_name.to_owned(),
            namespace: namespace.to_owned(),
            followers: kinds.into_iter().map(|what| (Follower::Of(what), Standing::default())).collect(),
            complaints: BTreeMap::new(),
            labels: None,
            secrets: BTreeMap::new(),
            told: Vec::new(),
            in_sync: false,
        }
    }

    /// Takes what a follower tells.
    pub(super) fn take(&mut self, news: News, now: Instant, updates: &mut Vec<Update>) {
        let kind = match news.from {
            Follower::Of(What::Objects(kind)) => Some(kind),
            Follower::Secret(_) => Some(Kind::Secret),
            Follower::Of(What::Definitions) => None,
        };
        if let Some(kind) = kind {
            for change in news.changes {
                self.change(kind, change, updates);
            }
        }
        let Some(standing) = self.followers.get_mut(&news.from) else { return };
        match news.state {
            None => {}
            Some(State::Current | State::Absent { because: None }) => {
                *standing = Standing { synced: true, trouble: None }
            }
            Some(State::Absent { because: Some(reason) }) => {
                let since = standing.trouble.as_ref().map_or(now, |t| t.since);
                *standing = Standing { synced: true, trouble: Some(Trouble { reason, since, stale: false }) };
            }
            Some(State::Failing { reason, refused }) => {
                let since = standing.trouble.as_ref().map_or(now, |t| t.since);
                // Without its password a session stays down, and nothing else waits for it; without the definitions the
                // kinds are asked for one by one.
                let spared = matches!(news.from, Follower::Secret(_) | Follower::Of(What::Definitions));
                standing.synced |= refused && spared;
                standing.trouble = Some(Trouble { reason, since, stale: standing.synced });
            }
        }
    }

    /// Tells what is wrong now and whether everything has been read, where that has changed.
    pub(super) fn settle(&mut self, now: Instant, updates: &mut Vec<Update>) {
        let problems = self.problems(now);
        if problems != self.told {
            self.told.clone_from(&problems);
            updates.push(Update::Problems(problems));
        }
        let known = |secret| self.followers.get(&Follower::Secret(secret)).is_some_and(|s| s.synced);
        if !self.in_sync
            && self.followers.values().all(|standing| standing.synced)
            && self.wanted_secrets().into_iter().all(known)
        {
            self.in_sync = true;
            updates.push(Update::InSync);
        }
    }

    /// Names of the Secrets that peers of this node refer to.
    pub(super) fn wanted_secrets(&self) -> BTreeSet<String> {
        let Some(labels) = &self.labels else { return BTreeSet::new() };
        let ours = |selector: &Option<LabelSelector>| selector.as_ref().is_none_or(|s| s.matches(labels));
        let named = self.secrets.values().flatten();
        named.filter(|(selector, _)| ours(selector)).map(|(_, name)| name.clone()).collect()
    }

    /// A Secret is followed from now on.
    pub(super) fn add_secret(&mut self, name: &str) {
        self.followers.insert(Follower::Secret(name.to_owned()), Standing::default());
    }

    /// A Secret is not followed any more: it is as good as gone.
    pub(super) fn drop_secret(&mut self, name: &str, updates: &mut Vec<Update>) {
        self.followers.remove(&Follower::Secret(name.to_owned()));
        let key = ObjectKey { kind: Kind::Secret, namespace: self.namespace.clone(), name: name.to_owned() };
        self.complaints.remove(&key);
        updates.push(Update::Remove(key));
    }

    fn change(&mut self, kind: Kind, change: Change, updates: &mut Vec<Update>) {
        match change {
            Change::Gone { namespace, name } => {
                let key = ObjectKey { kind, namespace, name };
                let was_in_force = self.complaints.remove(&key).is_none_or(|complaint| complaint.in_force);
                if was_in_force {
                    self.forget(&key);
                    updates.push(Update::Remove(key));
                }
            }
            Change::Set { item, known } => {
                let key = ObjectKey { kind, namespace: item.namespace, name: item.name };
                let before = self.complaints.remove(&key);
                let in_force = known && before.is_none_or(|complaint| complaint.in_force);
                match manifest::object(&item.tree) {
                    Ok(understood) => {
                        if !understood.notes.is_empty() {
                            let complaint = Complaint {
                                reasons: understood.notes,
                                effect: "",
                                stale: false,
                                in_force: true,
                            };
                            self.complaints.insert(key, complaint);
                        }
                        self.note(&understood.object);
                        updates.push(Update::Set(Arc::new(understood.object)));
                    }
                    Err(reasons) => {
                        let api_version = item.tree.text("apiVersion").unwrap_or_default();
                        self.unreadable(key, api_version, reasons, in_force, updates);
                    }
                }
            }
        }
    }

    fn unreadable(
        &mut self,
        key: ObjectKey,
        api_version: &str,
        reasons: Vec<String>,
        in_force: bool,
        updates: &mut Vec<Update>,
    ) {
        let reason = reasons.join("; ");
        let complaint = match closed::policy(key.kind, api_version, &key.namespace, &key.name, &reason) {
            Some(closed) => {
                updates.push(Update::Set(Arc::new(closed)));
                let effect = "all pods that it might select are isolated until it can be read";
                Complaint { reasons, effect, stale: false, in_force: true }
            }
            None if in_force => {
                let effect = "what it said before stays in force";
                Complaint { reasons, effect, stale: true, in_force }
            }
            None => Complaint { reasons, effect: "it is not in force", stale: false, in_force },
        };
        self.complaints.insert(key, complaint);
    }

    /// Keeps what decides over Secrets.
    fn note(&mut self, object: &Object) {
        let wanted: Vec<_> = match object {
            Object::Node(node) if node.name == self.node_name => {
                self.labels = Some(node.labels.clone());
                node.kube_router.iter().flat_map(|said| &said.peers).flat_map(secrets_of).collect()
            }
            Object::BgpPeer(peer) => secrets_of(peer),
            Object::Foreign(said) if said.node.as_ref().is_none_or(|node| *node == self.node_name) => {
                let peers = said.says.iter().filter_map(|said| match said {
                    Object::BgpPeer(peer) => Some(peer),
                    _ => None,
                });
                peers.flat_map(|peer| secrets_of(peer)).collect()
            }
            Object::Foreign(_) => Vec::new(),
            _ => return,
        };
        match wanted.is_empty() {
            true => drop(self.secrets.remove(&object.key())),
            false => drop(self.secrets.insert(object.key(), wanted)),
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        if key.kind == Kind::Node && key.name == self.node_name {
            self.labels = None;
        }
        self.secrets.remove(key);
    }

    fn problems(&self, now: Instant) -> Vec<Problem> {
        let mut problems = self.troubles(now);
        for (key, complaint) in self.complaints.iter().take(NAMED) {
            problems.extend(complaint.reasons.iter().map(|reason| Problem {
                file: None,
                line: None,
                object: Some(key.to_string()),
                reason: reason.clone(),
                effect: complaint.effect,
                stale: complaint.stale,
            }));
        }
        if self.complaints.len() > NAMED {
            let more = self.complaints.len() - NAMED;
            let stale = self.complaints.values().skip(NAMED).any(|complaint| complaint.stale);
            problems.push(of_all(format!("{more} more objects have something wrong with them"), "", stale));
        }
        problems
    }

    /// What keeps followers from following; one problem for all that share a reason.
    fn troubles(&self, now: Instant) -> Vec<Problem> {
        let mut by_reason: BTreeMap<(&str, bool), Vec<String>> = BTreeMap::new();
        for (follower, standing) in &self.followers {
            let Some(trouble) = &standing.trouble else { continue };
            if !self.in_sync || now.saturating_duration_since(trouble.since) >= GRACE {
                by_reason.entry((&trouble.reason, trouble.stale)).or_default().push(self.call(follower));
            }
        }
        let all = self.followers.len();
        let problem = |((reason, stale), who): ((&str, bool), Vec<String>)| {
            let whose = if who.len() == all { String::new() } else { format!("{}: ", who.join(", ")) };
            let effect = if stale { "what it said before stays in force" } else { "" };
            of_all(format!("{whose}{}: {reason}", self.server), effect, stale)
        };
        by_reason.into_iter().map(problem).collect()
    }

    fn call(&self, follower: &Follower) -> String {
        match follower {
            Follower::Of(What::Definitions) => "CustomResourceDefinition".to_owned(),
            Follower::Of(What::Objects(kind)) => kind.as_str().to_owned(),
            Follower::Secret(name) => format!("Secret {}/{name}", self.namespace),
        }
    }
}

/// Which nodes want which Secret for a peer, if any: of a session between nodes both ends.
fn secrets_of(peer: &BgpPeer) -> Vec<(Option<LabelSelector>, String)> {
    let Some(secret) = &peer.password else { return Vec::new() };
    let mut ends = vec![peer.node_selector.clone()];
    if let PeerTarget::Nodes(selector) = &peer.target {
        ends.push(Some(selector.clone()));
    }
    ends.into_iter().map(|end| (end, secret.name.clone())).collect()
}

fn of_all(reason: String, effect: &'static str, stale: bool) -> Problem {
    Problem { file: None, line: None, object: None, reason, effect, stale }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{Scope, WATCHED};
    use super::super::wire;
    use super::*;

    struct Scene {
        cluster: Cluster,
        start: Instant,
    }

    impl Scene {
        fn new(kinds: &[Kind]) -> Self {
            let kinds = kinds.iter().map(|kind| What::Objects(*kind));
            Scene { cluster: Cluster::new("https://api", "n1", "manx-system", kinds), start: Instant::now() }
        }

        fn tell(
            &mut self,
            after: u64,
            kind: Kind,
            changes: Vec<Change>,
            state: Option<State>,
        ) -> Vec<String> {
            let from = Follower::Of(What::Objects(kind));
            self.tell_from(after, from, changes, state)
        }

        fn tell_from(
            &mut self,
            after: u64,
            from: Follower,
            changes: Vec<Change>,
            state: Option<State>,
        ) -> Vec<String> {
            let now = self.start + Duration::from_secs(after);
            let mut updates = Vec::new();
            self.cluster.take(News { from, changes, state }, now, &mut updates);
            self.cluster.settle(now, &mut updates);
            updates.iter().map(describe).collect()
        }
    }

    fn describe(update: &Update) -> String {
        match update {
            Update::Set(object) => format!("set {}", object.key()),
            Update::Remove(key) => format!("remove {key}"),
            Update::InSync => "in sync".to_owned(),
            Update::Problems(problems) => {
                let one = |p: &Problem| {
                    let object = p.object.as_deref().map_or(String::new(), |o| format!("{o}: "));
                    format!("[{object}{}{}]", p.reason, if p.stale { " STALE" } else { "" })
                };
                format!("problems {}", problems.iter().map(one).collect::<String>())
            }
        }
    }

    fn set(json: &str, known: bool) -> Change {
        let line = format!(r#"{{"type":"ADDED","object":{json}}}"#);
        let what = What::Objects(Kind::Service);
        match wire::event(line.as_bytes(), what, "v1", "Node").unwrap() {
            wire::Event::Set(item) => Change::Set { item, known },
            other => panic!("{other:?}"),
        }
    }

    fn node(name: &str, rack: &str) -> Change {
        set(
            &format!(
                r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}","labels":{{"rack":"{rack}"}}}}}}"#
            ),
            false,
        )
    }

    fn peer(name: &str, rack: &str, secret: &str) -> Change {
        set(
            &format!(
                r#"{{"apiVersion":"manx.dev/v1alpha1","kind":"BGPPeer","metadata":{{"name":"{name}"}},"spec":{{
                "nodeSelector":{{"matchLabels":{{"rack":"{rack}"}}}},"peerIP":"10.0.0.1","asNumber":65001,
                "password":{{"secretKeyRef":{{"name":"{secret}","key":"k"}}}}}}}}"#
            ),
            false,
        )
    }

    fn failing(reason: &str) -> Option<State> {
        Some(State::Failing { reason: reason.into(), refused: false })
    }

    #[test]
    fn in_sync_means_that_every_kind_has_been_read() {
        let mut scene = Scene::new(&[Kind::Node, Kind::Pod]);
        assert_eq!(scene.tell(0, Kind::Node, vec![node("n1", "a")], Some(State::Current)), ["set Node n1"]);
        assert_eq!(scene.tell(0, Kind::Pod, vec![], Some(State::Absent { because: None })), ["in sync"]);
        assert!(scene.tell(1, Kind::Pod, vec![], Some(State::Current)).is_empty());
    }

    #[test]
    fn before_it_is_in_sync_what_is_wrong_is_told_at_once_and_later_when_it_lasts() {
        let mut scene = Scene::new(&[Kind::Node, Kind::Pod]);
        let away = "problems [Node: https://api: refused]";
        assert_eq!(scene.tell(0, Kind::Node, vec![], failing("refused")), [away]);
        assert_eq!(scene.tell(1, Kind::Node, vec![], Some(State::Current)), ["problems "]);
        assert_eq!(scene.tell(1, Kind::Pod, vec![], Some(State::Current)), ["in sync"]);
        assert!(scene.tell(2, Kind::Node, vec![], failing("refused")).is_empty());
        assert!(scene.tell(3, Kind::Pod, vec![], failing("refused")).is_empty());
        let all = "problems [https://api: refused STALE]";
        assert_eq!(scene.tell(9, Kind::Node, vec![], failing("refused")), [all]);
        assert_eq!(
            scene.tell(10, Kind::Node, vec![], Some(State::Current)),
            ["problems [Pod: https://api: refused STALE]"]
        );
        assert_eq!(scene.tell(10, Kind::Pod, vec![], Some(State::Current)), ["problems "]);
    }

    #[test]
    fn secrets_are_wanted_that_peers_of_this_node_refer_to_and_waited_for() {
        let mut scene = Scene::new(&[Kind::Node, Kind::BgpPeer]);
        scene.tell(0, Kind::BgpPeer, vec![peer("x", "a", "sa"), peer("y", "b", "sb")], Some(State::Current));
        assert!(scene.cluster.wanted_secrets().is_empty());
        let updates = scene.tell(0, Kind::Node, vec![node("n1", "a"), node("n2", "b")], Some(State::Current));
        assert!(!updates.contains(&"in sync".to_owned()), "{updates:?}");
        assert_eq!(scene.cluster.wanted_secrets(), ["sa".to_owned()].into());
        scene.cluster.add_secret("sa");
        let from = Follower::Secret("sa".into());
        let refused = Some(State::Failing { reason: "403 Forbidden".into(), refused: true });
        let updates = scene.tell_from(1, from, vec![], refused);
        assert!(updates.contains(&"in sync".to_owned()), "{updates:?}");
        let mut updates = Vec::new();
        scene.cluster.drop_secret("sa", &mut updates);
        assert_eq!(updates.iter().map(describe).collect::<Vec<_>>(), ["remove Secret manx-system/sa"]);
    }

    #[test]
    fn secrets_of_calicos_peers_and_of_annotations_are_wanted_on_their_nodes() {
        let mut scene = Scene::new(&[Kind::Node, Kind::CalicoBgpPeer]);
        let theirs = |name: &str, node: &str| {
            set(
                &format!(
                    r#"{{"apiVersion":"crd.projectcalico.org/v1","kind":"BGPPeer","metadata":{{"name":"{name}"}},"spec":{{
                    "node":"{node}","peerIP":"10.0.0.1","asNumber":65001,
                    "password":{{"secretKeyRef":{{"name":"of-{name}","key":"k"}}}}}}}}"#
                ),
                false,
            )
        };
        let annotated = set(
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","annotations":{
                "kube-router.io/peer.ips":"10.0.0.2","kube-router.io/peer.asns":"65002",
                "kube-router.io/peer.passwords":"c2VjcmV0"}}}"#,
            false,
        );
        scene.tell(0, Kind::CalicoBgpPeer, vec![theirs("x", "n1"), theirs("y", "n2")], Some(State::Current));
        scene.tell(0, Kind::Node, vec![annotated], None);
        assert_eq!(scene.cluster.wanted_secrets(), ["bgp-n1-0".to_owned(), "of-x".to_owned()].into());
        let gone = Change::Gone { namespace: String::new(), name: "x".into() };
        scene.tell(1, Kind::CalicoBgpPeer, vec![gone], None);
        scene.tell(1, Kind::Node, vec![node("n1", "a")], None);
        assert!(scene.cluster.wanted_secrets().is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_is_named_and_what_it_said_before_stays() {
        let mut scene = Scene::new(&[Kind::Node]);
        scene.tell(0, Kind::Node, vec![node("n2", "a")], Some(State::Current));
        let bad = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"NAME"},"spec":{"podCIDRs":["x"]}}"#;
        let updates = scene.tell(1, Kind::Node, vec![set(&bad.replace("NAME", "n2"), true)], None);
        assert_eq!(updates.len(), 1);
        assert!(updates[0].starts_with("problems [Node n2: spec.podCIDRs[0]"), "{updates:?}");
        assert!(updates[0].contains("STALE"));
        let updates = scene.tell(1, Kind::Node, vec![set(&bad.replace("NAME", "n3"), false)], None);
        assert!(updates[0].contains("Node n3"), "{updates:?}");
        // One that never was in force leaves without a trace; the other one takes its older self along.
        let gone = |name: &str| Change::Gone { namespace: String::new(), name: name.into() };
        assert_eq!(scene.tell(2, Kind::Node, vec![gone("n3")], None).len(), 1);
        assert_eq!(scene.tell(2, Kind::Node, vec![gone("n2")], None), ["remove Node n2", "problems "]);
    }

    #[test]
    fn a_policy_that_cannot_be_read_closes_and_comes_back() {
        let mut scene = Scene::new(&[Kind::NetworkPolicy]);
        scene.tell(0, Kind::NetworkPolicy, vec![], Some(State::Current));
        let policy = |spec: &str| {
            format!(
                r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
                "metadata":{{"name":"p","namespace":"a"}},"spec":{spec}}}"#
            )
        };
        let updates = scene.tell(1, Kind::NetworkPolicy, vec![set(&policy("5"), false)], None);
        assert_eq!(updates[0], "set NetworkPolicy a/p");
        assert!(updates[1].contains("NetworkPolicy a/p: spec"), "{updates:?}");
        let updates =
            scene.tell(2, Kind::NetworkPolicy, vec![set(&policy(r#"{"podSelector":{}}"#), true)], None);
        assert_eq!(updates, ["set NetworkPolicy a/p", "problems "]);
    }

    #[test]
    fn however_many_objects_are_wrong_the_list_stays_short() {
        let mut scene = Scene::new(&[Kind::Node]);
        let bad = |i: usize| {
            set(
                &format!(
                    r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"n{i}"}},"spec":{{"podCIDRs":["x"]}}}}"#
                ),
                false,
            )
        };
        let updates = scene.tell(0, Kind::Node, (0..500).map(bad).collect(), Some(State::Current));
        assert!(updates[0].ends_with("[400 more objects have something wrong with them]"), "{}", updates[0]);
        assert_eq!(updates[1], "in sync");
    }

    #[test]
    fn the_one_kind_that_is_read_by_name_is_in_the_table() {
        let by_name: Vec<_> = WATCHED.iter().filter(|w| w.scope == Scope::OwnNamespaceByName).collect();
        assert_eq!(by_name.len(), 1);
        assert_eq!(by_name[0].what, What::Objects(Kind::Secret));
    }
}
