//! `apply` and `plan`.

use brig_api::request::{Applied, ApplyOutcome};

use crate::arguments::{Apply, Output};
use crate::failure::Failure;
use crate::load;
use crate::output::{Field, Look, Row, column, json, print, print_list, printable, yaml};

use super::Session;
use super::consequences::consequences;

pub(crate) async fn apply(session: &Session<'_>, arguments: &Apply) -> Result<(), Failure> {
    let manifests = read(session, arguments)?;
    let response = session.client.apply(manifests).await?;
    print_applied(arguments.output, &response.applied)
}

pub(crate) async fn plan(session: &Session<'_>, arguments: &Apply) -> Result<(), Failure> {
    let manifests = read(session, arguments)?;
    let response = session.client.plan(manifests).await?;
    match arguments.output {
        Output::Json => return print(&json(&response)?),
        Output::Yaml => return print(&yaml(&response)?),
        Output::Table | Output::Wide | Output::Name => {}
    }
    print_applied(arguments.output, &response.applied)?;
    if arguments.output == Output::Name {
        return Ok(());
    }
    let lines = consequences(&response);
    print(&lines.iter().map(|line| format!("{}\n", printable(line))).collect::<String>())
}

fn read(
    session: &Session<'_>,
    arguments: &Apply,
) -> Result<Vec<brig_api::Manifest<brig_api::unit_spec::UnitSpec>>, Failure> {
    let namespace = session.context.namespace.as_ref().map(brig_api::NamespacePath::as_str);
    load::manifests(&arguments.files, namespace)
}

fn print_applied(output: Output, applied: &[Applied]) -> Result<(), Failure> {
    let columns =
        [column("KIND"), column("NAMESPACE"), column("NAME"), column("OUTCOME"), column("CHANGES")];
    let rows: Vec<_> = applied.iter().map(row).collect();
    print_list(output, &columns, &rows, applied)
}

fn row(applied: &Applied) -> Row {
    let (text, look) = match applied.outcome {
        ApplyOutcome::Created => ("created", Look::Good),
        ApplyOutcome::Updated => ("updated", Look::Waiting),
        ApplyOutcome::Unchanged => ("unchanged", Look::Plain),
    };
    let key = &applied.key;
    let fields = vec![
        key.kind.into(),
        key.namespace.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        (&key.name).into(),
        Field { text: text.to_owned(), look },
        applied.differences.join("; ").into(),
    ];
    Row { name: format!("{}/{}", key.kind, key.name), fields }
}
