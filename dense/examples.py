"""Examples that every verb shows in its help."""

from __future__ import annotations

COMMON = {"--quiet": "results and errors alone, no progress", "--debug": "show where an error came from"}

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {  # prog -> (command, what it does)
    "dense pretrain": (
        ("dense pretrain --config pretrain/scenes_tiny --output runs/scenes", "embedded scenes, no files, an hour"),
        ("dense pretrain --config pretrain/small_data --data.root PICTURES --output runs/mine", "your own pictures"),
        ("dense pretrain --config pretrain/dino_vits16 --print_config", "every key of a recipe"),
    ),
    "dense train": (
        ("dense train --config segmentation/scenes_linear --output runs/scenes", "embedded scenes, a minute"),
        (
            "dense train --config depth/dpt_dinov2 --data.layout folder --data.root MINE --output runs/depth",
            "MINE/images, MINE/depth, MINE/depth.yaml",
        ),
        ("dense train --config joint/dpt_dinov2 --print_config", "every key of a recipe"),
    ),
    "dense evaluate": (
        ("dense evaluate probe --backbone scenes_tiny --baselines", "a backbone, on embedded scenes"),
        ("dense evaluate depth runs/depth/model --data MINE --flip", "a trained model, on your pictures"),
    ),
    "dense evaluate knn": (
        ("dense evaluate knn --backbone runs/mine/backbone --train A --val B --output results", "one folder a class"),
    ),
    "dense evaluate linear": (
        ("dense evaluate linear --backbone dino_vits16 --weights FILE --train A --val B", "DINOv2's grid of heads"),
        ("dense evaluate linear --backbone scenes_tiny --train A --val B --no-augment --steps 500", "quick"),
    ),
    "dense evaluate finetune": (
        ("dense evaluate finetune --backbone dino_vits16 --weights FILE --train A --val B --epochs 30", "all of it"),
    ),
    "dense evaluate probe": (
        ("dense evaluate probe --backbone scenes_tiny --baselines", "beside random weights and raw pixels"),
    ),
    "dense evaluate depth": (
        ("dense evaluate depth runs/depth/model --data MINE --flip", "MINE/images and MINE/depth"),
        ("dense evaluate depth runs/depth/model --data NYU --layout nyuv2 --protocol nyuv2", "a published protocol"),
    ),
    "dense evaluate segmentation": (
        ("dense evaluate segmentation runs/mine/model --data MINE --boundary", "MINE/images and MINE/masks"),
        ("dense evaluate segmentation runs/mine/model --data ADE --layout ade20k --protocol slide_512", "windows"),
    ),
    "dense evaluate restoration": (
        (
            "dense evaluate restoration runs/restore/model --data CLEAN --degrade noise=25 rain",
            "any folder of pictures",
        ),
        ("dense evaluate restoration runs/restore/model --data PAIRS --layout paired", "PAIRS/input and PAIRS/target"),
    ),
    "dense evaluate discovery": (
        ("dense evaluate discovery --backbone scenes_tiny --data scenes --method all --baselines", "embedded scenes"),
        (
            "dense evaluate discovery --backbone dino_vits16 --weights FILE --data VOC2012 --layout voc2012 --method lost",
            "Pascal VOC",
        ),
    ),
    "dense evaluate video": (
        ("dense evaluate video --backbone scenes_tiny --data scenes --baselines", "embedded clips"),
        ("dense evaluate video --backbone dino_vits16 --weights FILE --data DAVIS", "DAVIS-2017"),
    ),
    "dense predict": (
        ("dense predict runs/mine/model PHOTO.jpg FOLDER --output answers", "pictures and folders"),
        ("dense predict runs/mine/model FILM.mp4 --window 518 --stride 345", "a film, seen through windows"),
    ),
    "dense discover": (
        ("dense discover PICTURES --backbone scenes_tiny --method tokencut --output found", "one object a picture"),
        (
            "dense discover PICTURES --backbone dino_vits16 --weights FILE --method cocluster --count 8",
            "classes that all pictures share",
        ),
    ),
    "dense track": (
        ("dense track FILM.mp4 --mask FIRST.png --backbone dino_vits16 --weights FILE --output tracked", "a film"),
    ),
    "dense curate": (
        ("dense curate PILE --backbone dino_vits16 --weights FILE --output curated", "drop what is unfit and copies"),
        (
            "dense curate PILE MORE --like CURATED --held-out TEST --backbone dino_vits16 --weights FILE --total 100000",
            "what is like CURATED, nothing of TEST, in equal shares",
        ),
        ("dense curate scenes:train --backbone scenes_tiny --resize 96 --crop 96", "embedded scenes, as shards"),
    ),
    "dense features": (
        ("dense features PICTURES --backbone dinov2_vits14 --weights FILE --output maps --layers last4", "four layers"),
        ("dense features PICTURES --backbone scenes_tiny --output maps --format none --pca", "pictures of them alone"),
    ),
    "dense convert": (
        ("dense convert dino_deitsmall16_pretrain.pth mine --backbone dino_vits16", "to a directory"),
        ("dense convert runs/mine/backbone official.pth --official", "and back to the release's own layout"),
    ),
    "dense export": (
        ("dense export runs/mine/model --output mine.onnx --size 518 686 --raw", "ONNX that takes uint8 values"),
        ("dense export scenes_tiny --output backbone.pt2 --size 96 96", "a backbone, as torch.export saves it"),
    ),
    "dense demo": (
        ("dense demo", "embedded scenes: pretraining, heads, discovery, and a report of it all"),
        ("dense demo --images FOLDER --backbone dino_vits16 --weights FILE", "your own pictures, without labels"),
    ),
    "dense completion": (
        ("dense completion bash > ~/.local/share/bash-completion/completions/dense", "for every new shell"),
        ("dense completion zsh > ~/.zfunc/_dense", "with ~/.zfunc in fpath"),
        ("dense completion fish > ~/.config/fish/completions/dense.fish", "for every new shell"),
    ),
}


def epilogue(prog: str) -> str:
    """What stands below the options of a verb: what every verb takes, and examples."""
    lines = ["", "options of every verb:"]
    lines += [f"  {option:<9} {words}" for option, words in COMMON.items()]
    if prog in EXAMPLES:
        lines += ["", "examples:"]
        for command, words in EXAMPLES[prog]:
            lines += [f"  # {words}", f"  {command}"]
    return "\n".join(lines) + "\n"
