//! `doctor`: looks at this host, asks the agent if there is one, and judges.

use manx_agent::doctor::collect::{self, Places};
use manx_agent::doctor::{self, snapshot::Snapshot};
use manx_agent::view::{self, CheckResult, Doctor, paths};

use crate::cli::DoctorArgs;
use crate::client::Client;
use crate::output::{Exit, Show, Style};
use crate::show::printable;

/// What is found on this host.
pub(crate) async fn examine(client: &Client, args: &DoctorArgs) -> Doctor {
    doctor::examine(&observe(client, args).await)
}

/// What is observed of it.
pub(crate) async fn observe(client: &Client, args: &DoctorArgs) -> Snapshot {
    let agent = client.get::<view::Status>(paths::STATUS, &[]).await.map_err(|failure| failure.to_string());
    let places = Places {
        run_dir: client.run_dir(),
        cni_conf_dir: &args.cni_conf_dir,
        cni_bin_dir: &args.cni_bin_dir,
    };
    collect::observe(&places, agent)
}

impl Show for Doctor {
    fn text(&self, style: &Style) -> String {
        let mut lines = Vec::new();
        for check in &self.checks {
            let (mark, colour) = match check.result {
                CheckResult::Ok => ("ok      ", "32"),
                CheckResult::Unknown => ("unknown ", "2"),
                CheckResult::Warning => ("WARNING ", "33"),
                CheckResult::Problem => ("PROBLEM ", "31"),
            };
            let mark = if style.colour { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() };
            lines.push(format!("{mark}{:<24}{}", check.name, printable(&check.observed)));
            lines.extend(check.remedy.as_ref().map(|remedy| format!("{:32}-> {}", "", printable(remedy))));
        }
        let count = |result: CheckResult| self.checks.iter().filter(|c| c.result == result).count();
        lines.push(match self.healthy {
            true => format!("{} checks, nothing found", self.checks.len()),
            false => format!(
                "{} checks, {} problems, {} warnings",
                self.checks.len(),
                count(CheckResult::Problem),
                count(CheckResult::Warning)
            ),
        });
        lines.join("\n")
    }

    /// What was found.
    fn names(&self) -> Vec<String> {
        let found = |c: &&view::Check| matches!(c.result, CheckResult::Warning | CheckResult::Problem);
        self.checks.iter().filter(found).map(|c| c.name.clone()).collect()
    }

    fn exit(&self) -> Exit {
        if self.healthy { Exit::Yes } else { Exit::No }
    }
}
