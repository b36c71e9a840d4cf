"""The table of commands: what each is for, where it lives, and two examples; imports nothing, so that help is quick."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command: `where` is `module:Class`, a tyro dataclass whose call returns an exit code or None."""

    where: str
    about: str
    examples: tuple[str, str]


SECTIONS: dict[str, dict[str, Command]] = {
    "over a data set": {
        "study": Command(
            "interp.cli.running:Study",
            "Caption images, or ask POPE's questions, with several methods, and compare.",
            (
                "interp study --limit 50 --methods greedy,vhr:alpha=1.5,random-heads:seed=1 --out runs/first",
                "interp study --task pope --limit 20 --methods greedy,m3id --out runs/pope",
            ),
        ),
        "sweep": Command(
            "interp.cli.running:Sweep",
            "Study methods at every combination of some parameters' values; draw the curves.",
            (
                "interp sweep --limit 50 --methods vhr,random-heads:seed=0 --vary alpha=0.5,1,2 --out runs/alpha",
                "interp sweep --limit 50 --methods top-k --vary keep=1,0.5,0.1 --out runs/keep",
            ),
        ),
        "causal": Command(
            "interp.cli.running:Causal",
            "What each head does for hallucinated and for correct words; ranks the heads.",
            (
                "interp causal --split dev --limit 100 --out runs/causal",
                "interp causal --split dev --limit 20 --no-exact --out runs/patching",
            ),
        ),
        "cause": Command(
            "interp.cli.running:Cause",
            "Whether object words follow the picture or the text before them: both swapped in turn.",
            (
                "interp cause --limit 100 --out runs/cause",
                "interp cause --data testbed:biased --split dev --limit 20 --out runs/cause-biased",
            ),
        ),
        "ablate": Command(
            "interp.cli.running:Ablate",
            "Edit a set of heads, and as many random ones as controls.",
            (
                "interp ablate --limit 50 --heads top10% --op zero --by vhd --out runs/ablate",
                "interp ablate --limit 50 --heads L0H5+L0H6 --op zero --out runs/two-heads",
            ),
        ),
        "attention": Command(
            "interp.cli.running:Attention",
            "Sparsity curves, sinks and attention to the image while captions are written.",
            (
                "interp attention --limit 50 --out runs/attention",
                "interp attention --model testbed-sink --limit 50 --out runs/attention-sink",
            ),
        ),
        "claims": Command(
            "interp.cli.reporting:Claims",
            "Measure every claim of the three papers on a model: values, intervals, verdicts.",
            (
                "interp claims --limit 50 --out runs/claims",
                "interp claims --matrix figures/claims/testbed figures/claims/testbed-sink",
            ),
        ),
        "detect": Command(
            "interp.cli.inspecting:Detect",
            "Whether T-VHD, head outputs or residual states tell hallucinated words, beyond position.",
            ("interp detect runs/DIR", "interp detect runs/broken runs/biased --out figures/detector"),
        ),
        "score": Command(
            "interp.cli.inspecting:Score",
            "Score the captions of a study with a function of your own.",
            (
                "interp score runs/first --score mypackage.scores:n_colours",
                "interp score runs/first --score my-score --seed 1",
            ),
        ),
        "direction": Command(
            "interp.cli.inspecting:MakeDirection",
            "Make a steering vector from what a study wrote.",
            (
                "interp direction runs/first --layer 4 --out correct.npz",
                "interp direction runs/first --layer 4 --of pictures --out pictures.npz",
            ),
        ),
        "report": Command(
            "interp.cli.reporting:Report",
            "Write a run as one HTML file: tables, figures, and its captions, token by token.",
            ("interp report runs/first", "interp report runs/first --look 0 --out first.html"),
        ),
        "across": Command(
            "interp.cli.inspecting:OverModels",
            "One table of methods by models from finished studies, headed by what hallucinations come from.",
            (
                "interp across runs/testbed runs/smollm2 --out runs/across",
                "interp across figures/methods runs/prior --causes figures/cause/testbed runs/cause-prior",
            ),
        ),
        "figures": Command(
            "interp.cli.figures:Figures",
            "Draw the figures of a run again from the numbers saved in its folder.",
            ("interp figures figures/causal", "interp figures runs/*"),
        ),
    },
    "one model, one picture": {
        "doctor": Command(
            "interp.cli.looking:Doctor",
            "Prove that interp reads and edits a model rightly; exit code 1 if not.",
            ("interp doctor testbed", "interp doctor llava-hf/llava-1.5-7b-hf --dtype bfloat16 --device cuda"),
        ),
        "heads": Command(
            "interp.cli.looking:Heads",
            "Rank heads by how far one picture moves them (VHD); T-VHD of a caption's tokens.",
            (
                "interp heads --image photo.jpg --caption --out runs/heads",
                'interp heads --image photo.jpg --caption "A fork lies at the left."',
            ),
        ),
        "overlay": Command(
            "interp.cli.looking:Overlay",
            "Draw where heads look on a picture when a word of the caption is written.",
            (
                "interp overlay --image photo.jpg --token fork --out fork.png",
                "interp overlay --image photo.jpg --token fork --heads L5H7,L4H7 --without-sinks",
            ),
        ),
        "sinks": Command(
            "interp.cli.looking:Sinks",
            "How often the first token is an attention sink, what it looks like inside, and over a training.",
            (
                "interp sinks --model testbed-sink --length 32,64x8 --out runs/sinks",
                "interp sinks --checkpoints runs/decoders/planted-softmax.steps --inputs natural --out runs/steps",
            ),
        ),
        "unsink": Command(
            "interp.cli.looking:Unsink",
            "What a model loses where its attention sink is masked, drained or penalised.",
            ("interp unsink --model testbed-sink", "interp unsink --model smollm2 --text python --out runs/unsink"),
        ),
        "lens": Command(
            "interp.cli.inspecting:Lens",
            "What each layer would say at each token of a caption, or at each place of the picture.",
            (
                "interp lens --image photo.jpg --over image --words categories",
                "interp lens --run runs/DIR --image-id 7 --out lens",
            ),
        ),
        "patch": Command(
            "interp.cli.inspecting:Patch",
            "Put heads, layers or positions of a run on one picture into a run on another.",
            (
                "interp patch --image without.png --source with.png --prompt 'Is there a knife in the image?'",
                "interp patch --image photo.png --image-free blank --site resid_post --over position --out patching",
            ),
        ),
        "lab": Command(
            "interp.cli.lab:Lab",
            "Open the notebooks in JupyterLab, in a copy of them.",
            ("interp lab", "interp lab my-notebooks --copy-only"),
        ),
        "methods": Command(
            "interp.cli.running:Methods",
            "List every method with its parameters, citation, cost and off setting.",
            ("interp methods", "interp methods | less"),
        ),
    },
    "scores of files that any model wrote": {
        "chair": Command(
            "interp.cli.scoring:Chair",
            "CHAIR of captions against COCO's annotations or a file with the truth.",
            (
                "interp chair captions.jsonl --coco /data/coco --split val2014",
                "interp chair captions.jsonl --truth truth.json --details scored.jsonl",
            ),
        ),
        "pope": Command(
            "interp.cli.scoring:Pope",
            "POPE of answers to yes/no questions; several files are averaged.",
            (
                "interp pope answers.jsonl --questions coco_pope_adversarial.json",
                "interp pope random.jsonl popular.jsonl --questions q_random.json q_popular.json --json",
            ),
        ),
        "opope": Command(
            "interp.cli.scoring:Opope",
            "OPOPE: POPE's questions answered from captions.",
            (
                "interp opope captions.jsonl --questions coco_pope_random.json",
                "interp opope captions.jsonl --questions coco_pope_random.json --json",
            ),
        ),
        "amber": Command(
            "interp.cli.scoring:Amber",
            "AMBER's generative scores.",
            (
                "interp amber responses.json --annotations annotations.json",
                "interp amber responses.json --annotations annotations.json --associations relation.json",
            ),
        ),
    },
    "the testbed, and the machine": {
        "testbed train": Command(
            "interp.cli.testbed:Train",
            "Train a testbed model, or go on with a training that was interrupted.",
            ("interp testbed train --out runs/testbed", "interp testbed train --recipe testbed-sink --out runs/sink"),
        ),
        "testbed evaluate": Command(
            "interp.cli.testbed:Evaluate",
            "Measure every figure of the model card of a testbed model.",
            (
                "interp testbed evaluate --split dev --limit 50",
                "interp testbed evaluate --model runs/testbed/model --card",
            ),
        ),
        "testbed doses": Command(
            "interp.cli.testbed:Doses",
            "Draw hallucination and sight against the dose of visual tuning, from a training's checkpoints.",
            (
                "interp testbed doses --run runs/prior --out runs/dose",
                "interp testbed doses --run runs/prior --limit 50 --out runs/dose",
            ),
        ),
        "testbed decoders": Command(
            "interp.cli.testbed:Decoders",
            "Train small decoders on English, and measure when an attention sink appears, by kernel and recipe.",
            (
                "interp testbed decoders --recipes planted-kernels --out figures/sinks-training",
                "interp testbed decoders --recipes softmax,fixed --steps 40 --run runs/short --out runs/short/figures",
            ),
        ),
        "testbed export": Command(
            "interp.cli.testbed:Export",
            "Write testbed scenes as a COCO-format folder with POPE questions.",
            (
                "interp testbed export --out runs/coco --limit 100",
                "interp testbed export --kind biased --split dev --out runs/biased",
            ),
        ),
        "testbed show": Command(
            "interp.cli.testbed:Show",
            "Draw a contact sheet of the testbed's scenes.",
            ("interp testbed show --out testbed.png", "interp testbed show --columns 4 --out small.png"),
        ),
        "bench table": Command(
            "interp.bench.command:BenchTable",
            "Speed of every method and measurement beside its reference, on one size of model.",
            (
                "interp bench table --size testbed --out runs/bench",
                "interp bench table --size smollm2 --rows greedy,vhr --repeats 3 --out runs/bench",
            ),
        ),
        "bench ranks": Command(
            "interp.bench.command:BenchRanks",
            "Many processes of one study with a stand-in for the model: killed, slow, on a slow shared disk.",
            ("interp bench ranks --ranks 8 --images 64", "interp bench ranks --ranks 64 --out runs/ranks.json"),
        ),
        "bench attention": Command(
            "interp.bench.attention:BenchAttention",
            "Memory and time of attention statistics against keeping all maps.",
            ("interp bench attention --out runs/bench", "interp bench attention --help"),
        ),
    },
}

COMMANDS: dict[str, Command] = {name: command for section in SECTIONS.values() for name, command in section.items()}
"""Every command by its name, which has two words where commands share the first."""
