#!/bin/bash
# Languini's GPT baseline: as many steps as one RTX 3090, the reference accelerator, makes in so many hours, on books
#
#   model      28 to 1,478 M parameters: mini, tiny, small, medium, large or xl, T 512, vocabulary 16,384
#   class  model   parameters  sequences  steps   tokens  FLOPs     bash scripts/languini.sh …
#    6 h   small        111 M        128  18,265   1.2 B  7.68e17   small 6
#   12 h   small        111 M        128  36,529   2.4 B  1.54e18   small 12
#   24 h   small        111 M        256  36,529   4.8 B  3.07e18   small 24 --data.batch-tokens 131072
#   48 h   medium       336 M        256  21,908   2.9 B  5.93e18   medium 48
#   96 h   medium       336 M        256  43,817   5.7 B  1.19e19   medium 96
#   published  classes and steps; the reference reads 238,719 tokens/s with mini, 141,864 with tiny, 55,416 with small,
#              16,618 with medium and 7,058 with large (Languini Kitchen)
#   estimate   1 × RTX 3090: the hours of the class; at 350 W, 2 to 34 kWh
#              8 × A100 80GB: 0.2 to 2.4 hours, $2 to $33
#   measured   not yet by this project
#
#   BOOKS='books/*.txt' bash scripts/languini.sh SIZE HOURS [flags of train_gpt2.py]
#
# Languini's own books (books3) are no longer to be had; name others. Its vocabulary comes from SentencePiece, ours from
# GPT-2's first merges: compare losses per byte. xl has no published throughput and needs
# --languini.tokens-per-second, which `gpt2 sweep languini-xl` measures. Languini trained in fp16 with 4 to 32 gradient
# accumulation steps; here the precision and the micro-batch follow from the GPU.
set -euo pipefail
refuse() { echo "error: $1" >&2; exit 2; }
size=${1:-} hours=${2:-} books=${BOOKS:-}
[[ " mini tiny small medium large xl " == *" $size "* ]] ||
    refuse "the size is '$size'; name one as first word: mini, tiny, small, medium, large or xl"
[[ $hours =~ ^[0-9.]+$ ]] || refuse "the hours are '$hours'; give the hours of the reference accelerator as second word"
[[ $books ]] || refuse "no text to train on; name it before the command: BOOKS='books/*.txt'"
shift 2
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py --source files --files "$books" --vocab-size 16384 --out data/books-16384
exec bash scripts/train.sh "languini-$size" --languini.hours "$hours" --log.folder "runs/languini-$size-${hours}h" "$@"
