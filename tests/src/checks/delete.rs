//! A pod is deleted: its address, routes, sets and rules are gone, on every node.

use std::time::Duration;

use anyhow::{Result, bail};

use super::policy::{DENY_INGRESS, FROM_ZONE, set};
use crate::kubelet::PodSpec;
use crate::lab::Lab;
use crate::report::{Ms, Report};
use crate::wait;

const LIMIT: Duration = Duration::from_secs(1);

/// Where a pod may be known, and how to look there.
type Place<'a> = (String, Box<dyn Fn() -> Result<String> + 'a>);

/// See the module.
///
/// # Errors
/// When the pod cannot be deleted.
pub fn check(lab: &mut Lab, report: &mut Report) -> Result<()> {
    set(lab, &[("back", "deny", DENY_INGRESS), ("back", "allow", FROM_ZONE)])?;
    // The pod with the label that the policy allows: a member of a set on every node.
    let pod = lab.pods["back/web-1"].clone();
    let words: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let node = lab.netns(&pod.node);
    let interface = pod.host_interface.clone();

    let places: Vec<Place<'_>> = {
        let mut places: Vec<Place<'_>> = vec![
            (
                "its routes on its node".into(),
                Box::new(|| Ok(node.ip("-4 route show table all")? + &node.ip("-6 route show table all")?)),
            ),
            (
                "its neighbour entries on its node".into(),
                Box::new(|| Ok(node.ip("-4 neigh show nud all")? + &node.ip("-6 neigh show nud all")?)),
            ),
            ("its interface on its node".into(), Box::new(|| node.ip("-o link show"))),
            (
                "its rules on its node".into(),
                Box::new(|| Ok(node.run("iptables-save")? + &node.run("ip6tables-save")?)),
            ),
            (
                "its addresses' allocation on its node (manxctl ipam)".into(),
                Box::new(|| allocations(lab, &pod.node)),
            ),
        ];
        for name in lab.agents.keys() {
            let netns = lab.netns(name);
            places.push((format!("its set members on {name}"), Box::new(move || netns.run("ipset save"))));
        }
        places
    };
    let holds = |text: &str| -> Option<String> {
        let word = |line: &str, word: &str| line.split([' ', ',', '@', ':', '/', '\t']).any(|w| w == word);
        let v6 = |line: &str, word: &str| line.split([' ', ',', '/', '\t']).any(|w| w == word);
        let hit = |line: &&str| {
            line.contains(&interface)
                || line.contains(&pod.container_id)
                || words.iter().any(|w| if w.contains(':') { v6(line, w) } else { word(line, w) })
        };
        text.lines().find(hit).map(str::to_owned)
    };

    // A place that does not know the pod while it lives would show nothing by not knowing it afterwards.
    let known = wait::until(LIMIT * 3, || {
        for (what, look) in &places {
            if holds(&look()?).is_none() {
                bail!("{what}: nothing, although it runs");
            }
        }
        Ok(())
    });
    report.check(
        "while the pod runs it is known in all these places",
        known.is_ok(),
        match known {
            Ok(_) => format!("{} places", places.len()),
            Err(error) => format!("{error:#}"),
        },
    );

    let took = lab.kubelet(&pod.node).delete_pod(&pod)?;
    report.check("the pod is deleted", true, format_args!("DEL took {}", Ms(took)));
    for (what, look) in &places {
        let gone = wait::until(LIMIT, || match holds(&look()?) {
            None => Ok(()),
            Some(line) => bail!("still there: {line}"),
        });
        report.check(
            &format!("after the pod was deleted: {what} gone"),
            gone.is_ok(),
            match gone {
                Ok(((), took)) => format!("after {}", Ms(took)),
                Err(error) => format!("{error:#}"),
            },
        );
    }
    drop(places);

    lab.pods.remove("back/web-1");
    let labels = pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>();
    let again = lab.run_pod(&PodSpec::new("back/web-1", &pod.node, &labels))?;
    report.check(
        "a pod of the same name gets other addresses while the old ones cool down",
        again.addresses.iter().all(|a| !pod.addresses.contains(a)),
        format_args!("{:?} after {:?}", again.addresses, pod.addresses),
    );
    set(lab, &[])
}

/// Who holds which address on a node; an address that cools down is nobody's.
fn allocations(lab: &Lab, node: &str) -> Result<String> {
    let ipam = lab.agents[node].manxctl_json(&["ipam"])?;
    let lines = ipam["allocations"].as_array().into_iter().flatten().map(|one| {
        let word = |key: &str| one[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {}", word("ip"), word("namespace"), word("pod"), word("containerId"))
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
