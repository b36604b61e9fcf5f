//! Small traces made by hand, whose outcomes can be worked out by hand.

use std::fs;

use brig_api::placement::Grants;
use brig_api::{NamespacePath, NodeName};
use expect_test::expect;
use tempfile::TempDir;

use super::gauges::Gauges;
use super::playback::{Outcome, play};
use super::*;

const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\n";
const PODS: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n";
const JOBS: &str = "submit_s,schedule_delay_s,run_s,end,scheduling_class,user,job_id\n";

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn gpu_trace(nodes: &str, pods: &str) -> Trace {
    let (nodes, pods) = (format!("{NODES}{nodes}"), format!("{PODS}{pods}"));
    let folder = folder(&[(alibaba::NODES_FILE, &nodes), (alibaba::PODS_FILE, &pods)]);
    let path = |file| folder.path().join(file);
    alibaba::read_as_it_was(&path(alibaba::NODES_FILE), &path(alibaba::PODS_FILE)).unwrap()
}

fn played(trace: &Trace) -> Outcome {
    play(trace, &Clocks::default, &|_| {}).unwrap()
}

/// What the replay of a folder prints, or its error.
fn printed(files: &[(&str, &str)]) -> Result<String, String> {
    let folder = folder(files);
    let mut output = Vec::new();
    match run(folder.path(), &mut output) {
        Ok(()) => Ok(String::from_utf8(output).unwrap()),
        Err(error) => {
            Err(format!("{error:#}").replace(&*folder.path().to_string_lossy(), "FOLDER"))
        }
    }
}

#[test]
fn two_halves_share_a_card_and_a_whole_one_waits_until_both_have_left() {
    let trace = gpu_trace(
        "n,8000,8192,1,T4\n",
        "a,1000,1024,1,500,,LS,Running,0,100,0\n\
         b,1000,1024,1,500,,LS,Running,0,80,0\n\
         c,1000,1024,1,1000,T4|P100,LS,Running,10,40,10\n",
    );
    let outcome = played(&trace);
    assert_eq!(outcome.waits_ms, [0, 0, 90_000]);
    assert_eq!(outcome.ended_ms, 130_000);
    assert_eq!(outcome.readings.utilisation[2], Some((1.0, 1.0)));
    assert_eq!(outcome.readings.utilisation[0], Some((0.25, 0.25)), "two of eight cores for 10 s");
    assert_eq!((outcome.units, outcome.nodes, outcome.preemptions), (3, 1, 0));
    assert!(outcome.never.is_empty());
}

#[test]
fn what_is_left_of_a_card_and_fits_nobody_is_fragmented() {
    let trace = gpu_trace(
        "n,8000,8192,2,T4\n",
        "a,1000,1024,1,600,,LS,Running,0,100,0\n\
         b,1000,1024,1,600,,LS,Running,10,100,10\n\
         c,1000,1024,1,600,,LS,Running,20,100,20\n",
    );
    let outcome = played(&trace);
    // For 10 s 0.4 of the free 1.4 are of no use to anybody, for 10 s all of the free 0.8.
    let (resource, mean, at_peak) = outcome.readings.fragmentation.unwrap();
    assert_eq!((resource, at_peak), ("gpu", 1.0));
    assert!((mean - (4.0 + 8.0) / (14.0 + 8.0)).abs() < 1e-9, "{mean}");
    assert_eq!(outcome.waits_ms, [0, 0, 80_000]);
}

#[test]
fn a_revocable_pod_leaves_for_another_and_begins_again() {
    let trace = gpu_trace(
        "n,8000,8192,1,T4\n",
        "a,1000,1024,1,1000,,BE,Running,0,100,0\nb,1000,1024,1,1000,,LS,Running,10,60,10\n",
    );
    let outcome = played(&trace);
    assert_eq!(outcome.preemptions, 1);
    assert_eq!(outcome.waits_ms, [0, 1_000], "a second to stop; only the first wait counts");
    assert_eq!(outcome.ended_ms, 161_000, "11 to 61 s, then a hundred seconds from the beginning");
}

#[test]
fn pods_that_fit_nowhere_are_counted_by_what_turns_them_down() {
    let trace = gpu_trace(
        "n,8000,8192,1,T4\n",
        "a,1000,1024,1,1000,A10,LS,Running,0,100,0\n\
         b,1000,1024,2,1000,,LS,Running,0,100,0\n\
         c,9000,1024,0,0,,LS,Running,0,100,0\n\
         d,1000,1024,0,0,,LS,Running,0,100,0\n",
    );
    let outcome = played(&trace);
    let never: Vec<_> = outcome.never.iter().map(|(why, units)| (why.as_str(), *units)).collect();
    assert_eq!(never, [("attributes", 1), ("resources (cpu)", 1), ("resources (gpu)", 1)]);
    assert_eq!(outcome.waits_ms, [0]);
}

#[test]
fn pods_are_piled_up_beyond_what_there_is_and_none_ends() {
    let nodes = format!("{NODES}n,80000,81920,10,T4\n");
    let pods = format!("{PODS}a,1000,1024,1,1000,,BE,Running,0,1,0\n");
    let folder = folder(&[(alibaba::NODES_FILE, &nodes), (alibaba::PODS_FILE, &pods)]);
    let path = |file| folder.path().join(file);
    let trace =
        alibaba::read_piled_up(&path(alibaba::NODES_FILE), &path(alibaba::PODS_FILE)).unwrap();
    let outcome = played(&trace);
    assert_eq!((outcome.units, outcome.waits_ms.len()), (13, 10));
    assert_eq!(outcome.never.values().sum::<usize>(), 3);
    assert_eq!(outcome.readings.utilisation[2].unwrap().1, 1.0);
}

#[test]
fn tasks_of_a_workflow_wait_for_their_parents_however_many_they_are() {
    let task = |id: &str, parents: &[String]| serde_json::json!({"id": id, "parents": parents});
    let run = |id: &str| serde_json::json!({"id": id, "runtimeInSeconds": 5.0, "coreCount": 1});
    let first: Vec<_> = (0..20).map(|number| format!("first-{number}")).collect();
    let mut tasks: Vec<_> = first.iter().map(|id| task(id, &[])).collect();
    tasks.push(task("Last", &first));
    let mut runs: Vec<_> = first.iter().map(|id| run(id)).collect();
    runs.push(run("Last"));
    let text = serde_json::json!({"workflow": {"specification": {"tasks": tasks}, "execution": {"tasks": runs}}});
    let folder = folder(&[("wide_1.json", &text.to_string())]);
    let trace = workflows::read(folder.path()).unwrap();
    assert_eq!(trace.work.iter().filter(|work| work.is_auxiliary).count(), 2, "16 and 4 parents");
    let outcome = played(&trace);
    assert_eq!(outcome.units, 21);
    assert!(outcome.waits_ms.iter().all(|wait_ms| *wait_ms == 0), "there is room for all at once");
    assert_eq!(outcome.ended_ms, 10_000, "five seconds, and five seconds after that");
}

#[test]
fn classes_are_priorities_and_users_are_namespaces() {
    let text = format!("{JOBS}2.211,1.7,10.5,FINISH,3,575,1\n0.5,1,,,0,7,2\n");
    let folder = folder(&[(google::FILE, &text)]);
    let trace = google::read(&folder.path().join(google::FILE)).unwrap();
    let first = &trace.work[1];
    assert_eq!((first.arrives_ms, first.runs_ms), (2_211, Some(10_500)));
    assert_eq!(first.job.namespace.as_str(), "user-575");
    assert_eq!(first.job.unit.priority, 300);
    assert_eq!(trace.work[0].runs_ms, None, "it still ran when the trace ended");
    let outcome = played(&trace);
    assert_eq!((outcome.waits_ms.as_slice(), outcome.ended_ms), ([0, 0].as_slice(), 12_711));
    assert_eq!(outcome.readings.namespaces, 2);
}

#[test]
fn the_index_of_fairness_is_one_for_equals_and_a_half_for_one_of_two() {
    let trace = gpu_trace("n,8000,8192,0,\n", "a,1000,1024,0,0,,LS,Running,100,200,100\n");
    let mut gauges = Gauges::new(&trace);
    let (one, other) = (NamespacePath::new("a").unwrap(), NamespacePath::new("b").unwrap());
    let node = NodeName::new("n").unwrap();
    gauges.waits(&one);
    gauges.placed(&one, &node, [2_000, 0, 0], &Grants::default());
    gauges.waits(&one);
    gauges.waits(&other);
    gauges.advance(10_000);
    assert_eq!(gauges.readings().fairness_of_waiting, Some(0.5));
    gauges.placed(&other, &node, [0, 2 << 30, 0], &Grants::default());
    gauges.advance(20_000);
    let readings = gauges.readings();
    assert_eq!(readings.fairness, Some(0.75), "half the time one, half the time both a quarter");
    assert_eq!(readings.fairness_of_waiting, Some(0.5), "nobody competes any more");
}

#[test]
fn the_table_reads_like_this() {
    let trace = gpu_trace(
        "n,8000,8192,1,T4\n",
        "a,1000,1024,1,600,,LS,Running,0,7300,0\n\
         b,1000,1024,1,600,,LS,Running,10,100,10\n\
         c,1000,1024,1,600,A10,BE,Running,10,100,10\n",
    );
    expect![[r#"
        ### Alibaba GPU 2023, as it was

        A pod runs from when it was scheduled until it was deleted; one that never was ran, from its creation. LS and Guaranteed have priority 200, Burstable 100, BE 0 and is revocable. The trace names no users.

        |                                    | value                             |
        | --- | --- |
        | units                              | 3                                 |
        | nodes                              | 1                                 |
        | passes                             | 8                                 |
        | utilisation of cpu                 | mean 12.5 %, peak 12.5 %          |
        | utilisation of memory              | mean 12.5 %, peak 12.5 %          |
        | utilisation of gpu                 | mean 60.0 %, peak 60.0 %          |
        | fragmentation of free gpu          | mean 100.0 %, at the peak 100.0 % |
        | waiting: median, p90               | 0.0 s, 2.0 h                      |
        | waiting: p99, longest              | 2.0 h, 2.0 h                      |
        | namespaces                         | 1                                 |
        | fairness, Jain, of those that wait | –                                 |
        | fairness, Jain, of all             | –                                 |
        | preemptions                        | 0                                 |
        | units never placed                 | 1                                 |
        | … for attributes                   | 1                                 |
        | last end, on the trace's clock     | 2.1 h                             |
        | time in the scheduler              | 0.0 s, of the processor 0.0 s     |
        | … of the processor per pass        | mean 0.00 ms, longest 0.00 ms     |
    "#]]
    .assert_eq(&report::text(&trace, &played(&trace)));
}

#[test]
fn what_is_absent_is_skipped_with_a_sentence() {
    let output = printed(&[(
        "google-2011-job-events/jobs_day8.csv",
        &format!("{JOBS}0,0,1,FINISH,0,1,1\n"),
    )])
    .unwrap();
    assert!(output.contains("### Google 2011"), "{output}");
    assert!(
        output
            .contains("Skipped: the folder has no alibaba-gpu-v2023/openb_node_list_all_node.csv.")
    );
    assert!(output.contains("Skipped: the folder has no wfinstances."), "{output}");
    let error = run(Path::new("/does/not/exist"), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("/does/not/exist is no folder"), "{error}");
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    let job = |line: &str| vec![(google::FILE, format!("{JOBS}0,0,1,FINISH,0,1,1\n{line}\n"))];
    let gpu = |node: &str, pod: &str| {
        vec![
            (alibaba::NODES_FILE, format!("{NODES}{node}\n")),
            (alibaba::PODS_FILE, format!("{PODS}{pod}\n")),
        ]
    };
    let workflow = |text: &str| vec![("wfinstances/w.json", text.to_owned())];
    let tasks = |parents: [&str; 2]| {
        let [a, b] = parents;
        workflow(&format!(
            "{{\"workflow\": {{\"specification\": {{\"tasks\": [\n{{\"id\": \"A\", \"parents\": [{a}]}},\n{{\"id\": \"B\", \"parents\": [{b}]}}]}},\n\"execution\": {{\"tasks\": [{{\"id\": \"A\", \"runtimeInSeconds\": 1}}]}}}}}}"
        ))
    };
    let node = "n,8000,8192,1,T4";
    let pod = "a,1000,1024,1,600,,LS,Running,0,1,0";
    for (files, words) in [
        (job("soon,0,1,FINISH,0,1,2"), "jobs_day8.csv:3: column `submit_s`: invalid float"),
        (job("-1,0,1,FINISH,0,1,2"), "jobs_day8.csv:3: `-1` s is no time"),
        (job("inf,0,1,FINISH,0,1,2"), "jobs_day8.csv:3: `inf` s is no time"),
        (job("1,0,1,FINISH,9,1,2"), "jobs_day8.csv:3: `9` is no scheduling class: expected 0 to 3"),
        (job("1,0,1"), "jobs_day8.csv:3: expected 7 columns, found 3"),
        (job("1,0,1,FINISH,0,1,1"), "1 of 2 jobs have the name of another"),
        (vec![(google::FILE, JOBS.to_owned())], "jobs_day8.csv:1: expected rows"),
        (
            vec![(google::FILE, "a,b\n1,2\n".to_owned())],
            "jobs_day8.csv:2: missing field `submit_s`",
        ),
        (gpu("n,8000,8192,65,T4", pod), "all_node.csv:2: 65 GPUs are too many"),
        (gpu("N_1,8000,8192,1,T4", pod), "all_node.csv:2: `N_1` is not a valid node name"),
        (gpu(&format!("{node}\n{node}"), pod), "all_node.csv:3: `n` is there twice"),
        (gpu(node, "a,1,1,2,600,,LS,Running,0,1,0"), "default.csv:2: 2 GPUs of 600 thousandths"),
        (gpu(node, "a,1,1,0,0,,XX,Running,0,1,0"), "default.csv:2: `XX` is no quality class"),
        (
            gpu(node, "a,1,18446744073709551615,0,0,,LS,Running,0,1,0"),
            "default.csv:2: 18446744073709551615 MiB are too many",
        ),
        (gpu(node, "A b,1,1,0,0,,LS,Running,0,1,0"), "default.csv:2: `A b` is not a valid name"),
        (gpu(node, "a,1,1,0,0,,LS,Running,0,1,0"), "default.csv:1: no pod asks for a gpu"),
        (workflow("{\n\"workflow\": 1}"), "w.json:2: invalid type"),
        (workflow("{"), "w.json:1: EOF"),
        (tasks(["", "\"C\""]), "w.json:3: task `B` has the parent `C`, which is no task"),
        (tasks(["\"B\"", "\"A\""]), "w.json:2: task `A` comes after itself"),
        (tasks(["", "\"A\""]), "w.json:3: task `B` is not among the tasks of `execution`"),
    ] {
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let error = printed(&files).unwrap_err();
        assert!(error.contains(words), "expected `{words}`, found: {error}");
    }
}
