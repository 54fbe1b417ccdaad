"""For each command and option words without it, and words with it: the two runs must differ in what can be seen."""

#: What each run starts with.
STUB = {
    "prune": "prune in.onnx out.onnx --report r.json --align none",
    "inspect": "inspect in.onnx",
    "explain": "explain in.onnx up.weight",
    "profile": "profile in.onnx --json",
    "sensitivity": "sensitivity in.onnx --json",
    "plan": "plan in.onnx -o p.json --align none",
    "apply": "apply in.onnx plan.json out.onnx --report r.json",
    "verify": "verify in.onnx pruned.onnx --plan plan.json --json",
    "run": "run in.onnx out.onnx",
    "sparsify": "sparsify in.onnx out.onnx --report r.json",
    "tune": "tune in.onnx out.onnx --report r.json --recover lstsq",
}
HALF, BUDGET, SAMPLES = "--ratio 0.5", "--target macs=0.7", "--ratio 0.5 --calib s.npz --recover lstsq"
LEAST = "--target macs=0.7 --calib s.npz --recover lstsq"
FAR = "--target macs=0.3 --calib s.npz --recover none"
DROP = "--target macs=0.2 --calib u.npz --labels truth --recover none"
JUDGED = "--max-drop 40 --calib u.npz --labels truth"
SCORED = "--max-drop 40 --calib s.npz --metric m.py:evaluate"
TUNED = "--target macs=0.3 --calib t.npz --labels truth --recover finetune --epochs 8"
TIMED, EASY = "--ratio 0.5 --check-speed", "--pattern 2:4 --calib s.npz"
DECIDE = {
    "--ratio": ("--ratio 0.25", HALF),
    "--criterion": (HALF, f"{HALF} --criterion random"),
    "--align": (HALF, f"{HALF} --align 8"),
    "--scope": (HALF, f"{HALF} --scope global"),
    "--cap": (f"{HALF} --scope global", f"{HALF} --scope global --cap 0.2"),
    "--ignore": (HALF, f"{HALF} --ignore up"),
    "--only": (HALF, f"{HALF} --only up"),
    "--input-shape": (HALF, f"{HALF} --input-shape x:1,9,12"),
    "--allow-inexact": (HALF, f"{HALF} --allow-inexact"),
    "--open-io": (HALF, f"{HALF} --open-io x"),
    "--seed": (f"{HALF} --criterion random", f"{HALF} --criterion random --seed 1"),
    "--target": (HALF, BUDGET),
    "--check-speed": (HALF, TIMED),
    "--provider": (TIMED, f"{TIMED} --provider nonsense"),
    "--batch": (TIMED, f"{TIMED} --batch 3"),
    "--threads": (TIMED, f"{TIMED} --threads 1"),
}
WRITE = {
    "--in-place": ("", "--in-place"),
    "--external-data-threshold": ("", "--external-data-threshold 1"),
}
SHOWN = {"--report": ("", "--report other.json"), "--json": ("", "--json")}
QUIET = {"--verbose": ("", "-v"), "--quiet": ("", "-q")}
EFFECTS = {
    "prune": {
        **DECIDE,
        "--calib": (HALF, f"{HALF} --calib s.npz"),
        "--samples": (SAMPLES, f"{SAMPLES} --samples 30"),
        "--calib-provider": (SAMPLES, f"{SAMPLES} --calib-provider nonsense"),
        "--labels": (SAMPLES, f"{HALF} --calib t.npz --recover lstsq --labels truth"),
        "--recover": (SAMPLES, f"{HALF} --calib s.npz --recover none"),
        "--epochs": (TUNED, f"{TUNED} --epochs 4"),
        "--lr": (TUNED, f"{TUNED} --lr 0.01"),
        "--steps": (SAMPLES, f"{SAMPLES} --steps 2"),
        "--no-rotate": (f"{SAMPLES} --only value", f"{SAMPLES} --only value --no-rotate"),
        "--trials": (LEAST, f"{LEAST} --trials 0"),
        "--min-agreement": (FAR, f"{FAR} --min-agreement 1"),
        "--max-drop": (DROP, f"{DROP} --max-drop 0"),
        "--no-verify": (HALF, f"{HALF} --no-verify"),
        "--inputs": (HALF, f"{HALF} --inputs f.npz"),
        "--rtol": (HALF, f"{HALF} --rtol 1e-30"),
        **{name: (f"{HALF} {a}", f"{HALF} {b}") for name, (a, b) in {**WRITE, **SHOWN, **QUIET}.items()},
        "--plan": (HALF, f"{HALF} --plan p.json"),
    },
    "plan": {
        **DECIDE,
        **{n: (f"{a} -v", f"{b} -v") for n, (a, b) in DECIDE.items() if "--check-speed" in b},
        "--output": (HALF, f"{HALF} -o q.json"),
        **{name: (f"{HALF} {a}", f"{HALF} {b}") for name, (a, b) in QUIET.items()},
    },
    "inspect": {
        "--input-shape": ("", "--input-shape x:1,9,12"),
        "--allow-inexact": ("", "--allow-inexact"),
        "--open-io": ("", "--open-io x"),
        "--ops": ("", "IN= --ops"),
        "--html": ("", "--html h.html"),
        "--sparsity": ("", "--sparsity"),
        "--json": SHOWN["--json"],
        **QUIET,
    },
    "explain": {
        "--input-shape": ("", "--input-shape x:1,9,12"),
        "--allow-inexact": ("IN=norm.onnx", "IN=norm.onnx --allow-inexact"),
        "--open-io": ("", "--open-io x"),
        "--json": SHOWN["--json"],
        **QUIET,
    },
    "profile": {
        "--input-shape": ("", "--input-shape x:1,9,12"),
        "--allow-inexact": ("IN=norm.onnx", "IN=norm.onnx --allow-inexact"),
        "--provider": ("", "--provider nonsense"),
        "--batch": ("", "--batch 3"),
        "--threads": ("", "--threads 1"),
        "--json": ("JSON=", ""),
        **{name: (f"JSON= {a}", f"JSON= {b}") for name, (a, b) in QUIET.items()},
    },
    "sensitivity": {
        "--criterion": ("--calib s.npz", "--calib s.npz --criterion wanda"),
        "--ignore": ("--calib s.npz", "--calib s.npz --ignore up"),
        "--only": ("--calib s.npz", "--calib s.npz --only up"),
        "--input-shape": ("--calib s.npz", "--calib s.npz --input-shape x:1,9,12"),
        "--allow-inexact": ("--calib s.npz", "--calib s.npz --allow-inexact"),
        "--open-io": ("--calib s.npz", "--calib s.npz --open-io x"),
        "--seed": ("--calib synthetic --samples 20", "--calib synthetic --samples 20 --seed 1"),
        "--calib": ("", "--calib s.npz"),
        "--samples": ("--calib s.npz", "--calib s.npz --samples 30"),
        "--calib-provider": ("--calib s.npz", "--calib s.npz --calib-provider nonsense"),
        "--no-rotate": ("--calib s.npz", "--calib s.npz --no-rotate"),
        "--json": ("--calib s.npz JSON=", "--calib s.npz"),
        **{name: (f"--calib s.npz JSON= {a}", f"--calib s.npz JSON= {b}") for name, (a, b) in QUIET.items()},
    },
    "apply": {
        "--no-verify": ("", "--no-verify"),
        "--inputs": ("", "--inputs f.npz"),
        "--rtol": ("", "--rtol 1e-30"),
        **WRITE,
        **SHOWN,
        **QUIET,
    },
    "verify": {
        "--inputs": ("", "--inputs f.npz"),
        "--rtol": ("", "--rtol 1e-30"),
        "--seed": ("", "--seed 5"),
        "--plan": ("", "--plan other_plan.json"),
        "--json": ("JSON=", ""),
        "--verbose": ("", "-v"),
        "--quiet": ("JSON=", "JSON= -q"),
    },
    "run": {
        "--passes": ("--passes drop_dead", "--passes prune{ratio=0.5}"),
        "--input-shape": (
            "--passes prune{ratio=0.5} --report r.json",
            "--passes prune{ratio=0.5} --report r.json --input-shape x:1,9,12",
        ),
        **{
            name: (f"--passes prune{{ratio=0.5}} {a}", f"--passes prune{{ratio=0.5}} {b}")
            for name, (a, b) in {**WRITE, "--report": SHOWN["--report"], **QUIET}.items()
        },
    },
    "tune": {
        "--max-drop": (JUDGED, f"{JUDGED} --max-drop 60"),
        "--metric": (JUDGED, SCORED),
        "--lower-is-better": (SCORED, f"{SCORED} --lower-is-better"),
        "--eval": (JUDGED, f"{JUDGED} --eval v.npz"),
        "--minimize": (JUDGED, f"{JUDGED} --minimize macs"),
        "--minutes": (JUDGED, f"{JUDGED} --minutes 0.00001"),
        "--target": (JUDGED, f"{JUDGED} --target params=0.9"),
        "--state": (JUDGED, f"{JUDGED} --state other"),
        "--recover": (JUDGED, f"{JUDGED} --recover none"),
        "--ignore": (JUDGED, f"{JUDGED} --ignore up"),
        "--only": (JUDGED, f"{JUDGED} --only up"),
        "--input-shape": (JUDGED, f"{JUDGED} --input-shape x:1,9,12"),
        "--threads": (JUDGED, f"{JUDGED} --threads 1"),
        "--calib": (JUDGED, JUDGED.replace("u.npz", "w.npz")),
        "--samples": (JUDGED, f"{JUDGED} --samples 100"),
        "--calib-provider": (JUDGED, f"{JUDGED} --calib-provider nonsense"),
        "--labels": (SCORED, JUDGED),
        **{name: (f"{JUDGED} {a}", f"{JUDGED} {b}") for name, (a, b) in {**SHOWN, **QUIET}.items()},
    },
    "sparsify": {
        "--pattern": ("--pattern 2:4", "--pattern 1:4"),
        "--sparsity": ("--pattern unstructured --sparsity 0.5", "--pattern unstructured --sparsity 0.6"),
        "--method": (EASY, f"{EASY} --method wanda"),
        "--scope": (
            "--pattern unstructured --sparsity 0.5",
            "--pattern unstructured --sparsity 0.5 --scope global",
        ),
        "--permute": ("--pattern 2:4", "--pattern 2:4 --permute"),
        "--ignore": ("--pattern 2:4", "--pattern 2:4 --ignore up"),
        "--only": ("--pattern 2:4", "--pattern 2:4 --only up"),
        "--calib": ("--pattern 2:4", EASY),
        "--samples": (EASY, f"{EASY} --samples 30"),
        "--calib-provider": (EASY, f"{EASY} --calib-provider nonsense"),
        "--labels": (EASY, "--pattern 2:4 --calib t.npz --labels truth"),
        "--no-refit": (f"{EASY} --method wanda", f"{EASY} --method wanda --no-refit"),
        "--schedule": (EASY, f"{EASY} --schedule cubic --steps 2"),
        "--steps": (f"{EASY} --schedule cubic --steps 2", f"{EASY} --schedule cubic --steps 3"),
        "--input-shape": (EASY, f"{EASY} --input-shape x:1,9,13"),
        "--seed": (f"{EASY} --samples 30", f"{EASY} --samples 30 --seed 1"),
        "--store": ("--pattern unstructured --sparsity 0.99",
                    "--pattern unstructured --sparsity 0.99 --store sparse"),
        **{n: (f"--pattern 2:4 {a}", f"--pattern 2:4 {b}") for n, (a, b) in {**WRITE, **SHOWN, **QUIET}.items()},
    },
}  # fmt: skip
