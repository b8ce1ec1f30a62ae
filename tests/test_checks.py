"""The checkers of "Your turn": a right solution is right, a stub waits, and every typical mistake is told in words."""

import math
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(ROOT / "notebooks"))

import itertools

import checks
from contents import find, read

# exercise → typical mistakes: what to replace in the solution, by what, and words of the answer
MISTAKES = {
    "start_here.hours": [
        (" / 3600", "", "these are seconds"),
        ("/ 3600", "/ 60", "these are minutes"),
        ("tokens / tokens_per_second", "tokens_per_second / tokens", "divide tokens by speed"),
    ],
    "start_here.running_mean": [
        (".mean()", ".sum() / window", "divide by the number of values there are"),
        ("max(0, i - half) : i + half + 1", "max(0, i - window + 1) : i + 1", "the window ends at i"),
        ("range(len(values))", "range(half, len(values) - half)", "a mean for each"),
    ],
    "tokens.join": [
        ("i += 2 if found else 1", "i += 1", "go on by two tokens"),
        ("tokens[i] + tokens[i + 1] if found", "pair if found", "should be concatenated"),
        ("tuple(tokens[i : i + 2])", "tokens[i : i + 2]", "compare a pair with a pair"),
        ("while i < len(tokens):", "while i < len(tokens) - 1:", "the last token is lost"),
        ("i += 2 if found else 1", "i += 2 if found else 1\n        pair = None if found else pair", "only the first"),
    ],
    "tokens.longest_match": [
        ("end = len(data)", "end = start + 1", "the shortest tokens"),
        ("tokens.append(data[start:end])", "tokens.append(ranks[data[start:end]])", "not their ranks"),
        ("while start < len(data):", "while start < len(data) - 1:", "nothing may be lost"),
        ("end = len(data)", "end = min(start + 2, len(data))", "is longer"),
    ],
    "tokens.split_digits": [
        ("|\\p{N}|", "| ?\\p{N}|", "the space should be a piece of its own"),
        ("|\\p{N}|", "|\\p{N}+|", "each should be alone"),
        ("|\\p{N}|", "|", "got lost"),
        ("|\\p{N}|", "|[0-9]|", "got lost"),
    ],
    "tokens.whole_characters": [
        ("data[:cut].decode(), data[cut:]", 'data.decode("utf-8", "replace"), b""', "which should wait"),
        ("data[:cut].decode(), data[cut:]", 'data.decode("utf-8", "ignore"), b""', "bytes are lost"),
        ("data[cut:]", 'data[cut:].decode("utf-8", "replace")', "still undecoded"),
        ("range(4)", "range(3, -1, -1)", "more could be shown"),
    ],
    "tokens.bits_per_byte": [
        (" / math.log(2)", "", "these are nats per byte"),
        ("/ math.log(2)", "* math.log(2)", "divide by ln 2"),
        ("loss * tokens", "loss * size", "bits per token"),
        ("loss * tokens", "loss", "the mean of one token"),
    ],
    "attention.head": [
        ('.masked_fill(~allowed, float("-inf"))', "", "the causal mask is missing"),
        (
            'scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)',
            "scores.softmax(-1).tril()",
            "before the softmax",
        ),
        (" / math.sqrt(D)", "", "are not divided by √D"),
        ("math.sqrt(D)", "D", "are divided by D"),
        ("q @ k.T", "k @ q.T", "not k @ q.T"),
        ("softmax(dim=-1)", "softmax(dim=0)", "along the rows"),
        (".tril()", ".tril(1)", "position 0 sees only itself"),
    ],
    "attention.attention": [
        ("c_proj(y.transpose(1, 2).reshape(B, T, C))", "y.transpose(1, 2).reshape(B, T, C)", "c_proj is missing"),
        ('.masked_fill(~allowed, float("-inf"))', "", "the causal mask is missing"),
        ("math.sqrt(C // H)", "math.sqrt(C)", "it should be √D"),
        (" / math.sqrt(C // H)", "", "are not divided by √D"),
        ("y.transpose(1, 2).reshape", "y.reshape", "joined in the wrong order"),
        (
            "c_attn(x).view(B, T, 3, H, C // H).permute(2, 0, 3, 1, 4)",
            "[m.reshape(B, H, T, C // H) for m in c_attn(x).chunk(3, -1)]",
            "view alone mixes",
        ),
        (
            "view(B, T, 3, H, C // H).permute(2, 0, 3, 1, 4)",
            "view(B, T, H, 3, C // H).permute(3, 0, 2, 1, 4)",
            "all queries",
        ),
    ],
    "attention.induction": [
        ("t - period + 1", "t - period", "the token after it"),
        ("range(period, T)", "range(period - 1, T)", "begin at position period"),
        (".mean(0)", ".sum(0)", "should be their mean"),
        (".mean(0)", ".mean()", "one mean per head"),
    ],
    "attention.windowed_weights": [
        ("distance < window", "distance <= window", "they should see 1, 2, 3, 3, 3, 3"),
        ("(distance >= 0) & ", "", "looks ahead"),
        ('scores.masked_fill(~allowed, float("-inf")).softmax(-1)', "scores.softmax(-1) * allowed", "add up to 1"),
    ],
    "attention.merge_heads": [
        (".transpose(1, 2)", "", "other positions'"),
        ("(B, T, H * D)", "(B, H, T * D)", "should be (2, 5, 12)"),
    ],
    "attention.attention_flops": [
        ("2 * T * C * 3 * C + 2 * T * C * C", "T * C * 3 * C + T * C * C", "it should be"),
        ("2 * T * T * C + 2 * T * T * C", "2 * T * T * C", "two products"),
        (" + 2 * T * C * C", "", "the last map"),
    ],
    "gpt2_model.block": [
        ("x = x + attention", "x = attention", "it should be"),
        ("return x + mlp", "return mlp", "the second residual connection"),
        ("x = x + attention(ln_1(x))\n    return x", "y = x + attention(ln_1(x))\n    x = x", "is there a `return`?"),
        ("attention(ln_1(x))\n    return x + mlp(ln_2(x))", "attention(x)\n    return x + mlp(x)", "no LayerNorm"),
        ("mlp(ln_2(x))", "mlp(x)", "it should read ln_2"),
        ("x = x +", "x = ln_1(x) +", "the norm has replaced the stream"),
        (
            "x + attention(ln_1(x))\n    return x + mlp(ln_2(x))",
            "ln_1(x + attention(x))\n    return ln_2(x + mlp(x))",
            "GPT-1",
        ),
    ],
    "gpt2_model.logits_of": [
        ("[..., :vocab_size]", "", "padding rows, which are no tokens"),
        ("[..., :vocab_size]", "[..., -vocab_size:]", "the last ones"),
        ("[..., :vocab_size]", "[..., :vocab_size].softmax(-1)", "these are probabilities"),
        ("[..., :vocab_size]", "[:, :vocab_size]", "padding rows"),
    ],
    "gpt2_model.block_parameters": [
        ("norms = 4 * C", "norms = 0", "the two LayerNorms are missing"),
        ("norms = 4 * C", "norms = 2 * C", "a block has two LayerNorms"),
        ("+ 3 * C)", ")", "it should be"),
        ("3 * C * C + 3 * C", "C * C + C", "c_attn makes q, k and v"),
    ],
    "gpt2_model.post_norm_block": [
        ("ln_1(x + attention(x))", "x + ln_1(attention(x))\n    return x + ln_2(mlp(x))", "it should be of the sum"),
        ("ln_1(x + attention(x))", "x + attention(ln_1(x))\n    return x + mlp(ln_2(x))", "GPT-2's own order"),
        ("ln_1(x + attention(x))", "ln_1(attention(x))\n    return ln_2(mlp(x))", "nothing is added"),
        ("ln_2(x", "ln_1(x", "a norm of its own"),
    ],
    "gpt2_model.sizes_of": [
        ("max(layers) + 1", "max(layers)", "the first one is number 0"),
        ('int(name.split(".")[2])', 'name.split(".")[2]', "stopped with TypeError"),
        ("max(layers) + 1", "int(max(map(str, layers))) + 1", "as text, '9' comes after '11'"),
        ('wpe.weight"].shape[0]', 'wpe.weight"].shape[1]', "you took the columns"),
        ("n_embd=n_embd", "n_embd=n_embd, n_head=12", "can't be known from the shapes"),
    ],
    "gpt2_model.to_published": [
        ('"c_fc.weight", "c_proj.weight"', '"c_fc.weight"', "it is square"),
        ("t.t() if name.endswith(matrices) else t", "t.t() if t.dim() == 2 else t", "no linear layer"),
        ("[:vocab_size]", "", "are padding"),
        ('"c_attn.weight", ', "", "c_attn.weight is not transposed"),
    ],
    "sampling.keep_top_p": [
        ("if total >= top_p:", "if total + p[i] > top_p:", "ask before you add"),
        ("p.argsort(descending=True)", "range(len(p))", "in the order of the vocabulary"),
        ("kept / total", "kept", "adds up to 0.80"),
        ("kept / total", "(kept / total).sort(descending=True).values", "the place of its own word"),
        ("total >= top_p", "total > top_p", "so nothing else is kept"),
    ],
    "sampling.cached_attention": [
        (".tril(S - T)", ".tril()", "moved to the right by the number of old positions"),
        ("attn_mask=sees", "attn_mask=None", "also those after it"),
        ("[past[0], k]", "[k, past[0]]", "the old come first"),
        (", (k, v)", "", "return two things"),
        ("return F", "k, v = k[:, :, -T:], v[:, :, -T:]\n    sees = None\n    return F", "along dimension 2"),
    ],
    "sampling.at_temperature": [
        ("p ** (1 / temperature)", "p**temperature", "flatter"),
        ("p ** (1 / temperature)", "(p / temperature).exp()", "not logits"),
        (" / powers.sum()", "", "divide by it"),
    ],
    "sampling.min_p": [
        ("ratio * p.max(-1, keepdim=True).values", "ratio", "`ratio` itself was the limit"),
        ("p.max(-1, keepdim=True).values", "p.max()", "the limit of row 0"),
        ('float("-inf")', "0.0", "fill logits with -inf"),
        ('logits.masked_fill(p < limit, float("-inf")).softmax(-1)', "p.masked_fill(p < limit, 0)", "adds up to 0.9"),
        (".softmax(-1)\n", "\n", "did you return logits"),
    ],
    "sampling.take_back": [
        ("-= tokens", "= tokens", "the cache counts 3"),
        (
            "cache.position -= tokens",
            "for t in (*cache.k, *cache.v):\n        t[:, :, cache.position - tokens :] = 0",
            "rows that hold zeros",
        ),
        ("-= tokens", "= 0", "the cache counts 0"),
        ("-= tokens", "-= tokens\n    for t in cache.k:\n        t.zero_()", "were changed"),
    ],
    "sampling.until": [
        ("in tokens:", "in list(tokens):", "asked for 6 tokens before the first"),
        (
            "        if token.item() == end:\n            return\n        yield token.item()",
            "        yield token.item()\n        if token.item() == end:\n            return",
            "the end itself (256) was passed on",
        ),
        ("return", "continue", "goes on after the end"),
        ("yield token.item()", "yield token", "is a Tensor"),
    ],
    "loss.cross_entropy": [
        ("logits.max(dim=-1, keepdim=True).values", "torch.zeros(len(logits), 1)", "largest logit of each row first"),
        (
            "logits.max(dim=-1, keepdim=True).values",
            "logits.max() + torch.zeros(len(logits), 1)",
            "largest of all rows",
        ),
        (".mean()", ".sum()", "take the mean"),
        (".mean()", ".sum() / len(counted)", "only 2 positions count"),
        ("log_sum_exp - wanted", "wanted - log_sum_exp", "is negative"),
        (".mean()", "", "one number"),
    ],
    "loss.inputs_and_targets": [
        ("line[1 : N * T + 1]", "line[: N * T]", "nothing has to be predicted"),
        ("line[1 : N * T + 1].view(N, T)", "inputs.roll(-1, dims=1)", "the row's own first token"),
        ("line[1 : N * T + 1]", "line[2 : N * T + 2]", "lies 2 places ahead"),
        ("(len(line) - 1) // T", "len(line) // T", "T inputs need T + 1 tokens"),
    ],
    "loss.logit_gradient": [
        (" / counted.sum()", "", "4 times too large"),
        ("counted.sum()", "len(targets)", "divided by all 6 positions"),
        ("gradient[~counted] = 0", "pass", "rows whose target is -100"),
        ("return gradient", "return -gradient", "the sign is wrong"),
    ],
    "loss.perplexity": [
        (".mean().exp()", ".exp().mean()", "mean of the exponentials"),
        ("losses[counted]", "losses", "leave it out"),
        (".exp()", "", "this is the mean loss"),
    ],
    "loss.final_std": [
        ("2 * n_layer", "n_layer", "one contribution a layer"),
        ("math.sqrt(embedding**2 + count * added**2)", "embedding + count * added", "variances do"),
        ("added / math.sqrt(count)", "added * math.sqrt(count)", "divide by √(2L)"),
        ("math.sqrt(embedding**2 + count * added**2)", "embedding**2 + count * added**2", "is the variance"),
    ],
    "data_loader.tokens_in": [
        ('"<i4"', '">i4"', "low byte first"),
        ("1024 + 2 * count", "1024 + count", "how many bytes does a token take"),
        ("len(raw) != 1024", "len(raw) < 1024", "two bytes too many is accepted"),
        (" or header[0] != 20240520", "", "starts with 20240521"),
        ("    return count", "    return 2 * count", "these are bytes"),
    ],
    "data_loader.sequences_in": [
        ("max(0, tokens - 1) // T", "tokens // T", "needs a target after it"),
        ("max(0, tokens - 1) // T", "tokens // (T + 1)", "neighbours share a token"),
        ("sequences * T + 1 if", "sequences * T if", "the last target is used"),
        ("sequences * T + 1 if sequences else 0", "sequences * T + 1", "give no sequence"),
    ],
    "data_loader.who_reads": [
        ("divmod(number, batch)", "divmod(number, batch * world)", "over all processes"),
        (
            "rank, mine = divmod(inside, batch // world)",
            "mine, rank = divmod(inside, world)",
            "12 sequences lie side by side",
        ),
        ("divmod(mine, micro_batch)", "divmod(mine, batch // world // micro_batch)", "takes 3 sequences side by side"),
        (
            "micro_step, row = divmod(mine, micro_batch)",
            "micro_step, row = mine // micro_batch, mine",
            "rows count from 0 to 2",
        ),
    ],
    "data_loader.undo": [
        ("reversed(keys)", "keys", "has to be undone first"),
        ("mix(left, key, half), left", "mix(right, key, half), left", "so mix that"),
        ("right ^ mix(left, key, half), left", "left, right ^ mix(left, key, half)", "change sides"),
        ("left * 2**half + right", "left * half + right", "how are the halves"),
    ],
    "make_it_fast.mfu": [
        ("6 * parameters + 12 * layers", "2 * parameters + 4 * layers", "forward alone"),
        (" + 12 * layers * width * block_size", "", "are missing"),
        ("12 * layers", "6 * layers", "two products"),
        ("6 * parameters", "2 * parameters", "6 FLOPs a parameter"),
        ("width * block_size", "block_size * block_size", "the MFU is"),
    ],
    "make_it_fast.roof": [
        ("max(flops / peak, bytes_moved / bandwidth)", "flops / peak + bytes_moved / bandwidth", "this is the sum"),
        ("max(", "min(", "the shorter"),
    ],
    "make_it_fast.tiled_softmax": [
        ("total * rescale + weights", "total + weights", "and the sum of exponentials of the first tile"),
        ("out * rescale + weights", "out + weights", "and the weighted sum of values of the first tile"),
        (
            "total = total * rescale + weights.sum()\n        out = out * rescale + weights @ v",
            "total = torch.tensor(1.0)\n        out = out + weights / weights.sum() @ v",
            "a softmax of its own",
        ),
        (
            "total = total * rescale + weights.sum()\n        out = out * rescale + weights @ v",
            "total = weights.sum()\n        out = weights @ v",
            "only the last tile counts",
        ),
        ("largest = torch.maximum(m, s.max())", "m = largest = torch.tensor(0.0)", "overflow"),
        ("return out / total", "return out", "the result"),
    ],
    "make_it_fast.fastest": [
        ("        work()\n        synchronize()\n", "        work()\n", "the time to start a step"),
        ("        synchronize()\n        started", "        started", "wait before"),
        ("range(warmup)", "range(0)", "warm up first"),
        ("min(times)", "sum(times) / len(times)", "take the shortest"),
    ],
    "make_it_fast.next_scale": [
        ("scale / 2, 0", "scale * 2, 0", "so halve it"),
        ("scale / 2, 0", "scale / 2, good_steps", "start again from 0"),
        ("good_steps + 1 == interval", "True", "it takes `interval` of them"),
        ("scale * 2, 0", "scale * 2, good_steps + 1", "doubles in every step"),
        ("scale * 2, 0", "scale, 0", "it should be doubled"),
    ],
    "optimisation.adamw_step": [
        ("m_hat / (v_hat.sqrt() + eps)", "m / (v.sqrt() + eps)", "need their bias correction"),
        ("w - lr * weight_decay * w - lr", "w - lr", "weight_decay changes nothing"),
        ("lr * weight_decay * w", "weight_decay * w", "not multiplied by the learning rate"),
        (
            "    m = betas[0] * m",
            "    g = g + weight_decay * w\n    weight_decay = 0\n    m = betas[0] * m",
            "was added to the gradient",
        ),
        ("(v_hat.sqrt() + eps)", "(v_hat + eps).sqrt()", "after the root"),
        ("(v_hat.sqrt() + eps)", "(v_hat + eps)", "divide by its root"),
        ("(1 - betas[1]) * g**2", "(1 - betas[1]) * g", "of their squares"),
        ("m = betas[0] * m + (1 - betas[0]) * g", "m = betas[0] * m + g", "an average, not a sum"),
        ("w = w - lr * weight_decay * w - lr", "w = w - lr * weight_decay * w + lr", "uphill"),
        ("return w, m, v", "return w, m_hat, v_hat", "go on without it"),
        ("** t", "** 1", "in step 2"),
    ],
    "optimisation.accumulate": [
        (" / parts", "", "4 times too large"),
        ("loss.backward()", "model.zero_grad()\n        loss.backward()", "only the last micro-batch"),
        ("loss.item()", "loss.item() * parts", "the mean was asked for"),
        ("total += loss.item()", "total += loss", "take `.item()`"),
    ],
    "optimisation.left_over": [
        ("math.prod(1 - lr * weight_decay for lr in rates)", "1 - sum(rates) * weight_decay", "added up"),
        ("lr * weight_decay for", "weight_decay for", "not weight_decay"),
        ("return math.prod(", "return 1 - math.prod(", "the part that is gone"),
    ],
    "optimisation.wsd": [
        ("(step + 1) / warmup", "step / warmup", "would change nothing"),
        ("math.sqrt(r)", "r", "asked for is 1 - sqrt(r)"),
        ("stable = round(plateau * steps)", "stable = warmup", "it should stay at max_lr"),
        ("(final_fraction + (1 - final_fraction) * height)", "height", "final_fraction of max_lr"),
    ],
    "optimisation.lion": [
        ("torch.sign(betas[0] * m + (1 - betas[0]) * g)", "betas[0] * m + (1 - betas[0]) * g", "is the sign taken"),
        (
            "    u = torch.sign(betas[0] * m + (1 - betas[0]) * g)\n",
            "    m = betas[1] * m + (1 - betas[1]) * g\n    u = torch.sign(betas[0] * m + (1 - betas[0]) * g)\n    return w - lr * (u + weight_decay * w), m\n",
            "take it with the old one",
        ),
        ("m = betas[1] * m + (1 - betas[1]) * g", "m = betas[0] * m + (1 - betas[0]) * g", "with the first beta"),
        (" + weight_decay * w)", ")", "changes nothing"),
        ("lr * (u + weight_decay * w)", "lr * u - weight_decay * w", "not multiplied by the learning rate"),
    ],
    "optimisation.backward_unequal": [
        (" * count / sum(counts)", " / len(micro_batches)", "counts as much as the first"),
        (" * count / sum(counts)", "", "undivided"),
        ("(y != -100).sum().item()", "y.numel()", "counts as much as the first"),
        (" / sum(counts)", "", "sum over all targets"),
        (" / sum(counts)", " / sum(y.numel() for x, y in micro_batches)", "padding was counted"),
    ],
    "many_gpus.ring_round": [
        ("(rank + 1) % n", "(rank - 1) % n", "from its right neighbour"),
        ("+= held", "= held", "replaced the own one"),
        ("= held[rank, piece]\n    return", "+= held[rank, piece]\n    return", "it is a finished sum by then"),
        ("(rank - turn) % n", "rank", "the same piece as in round 0"),
        ("return after", "return held", "nothing was received"),
        ("(rank - turn) % n", "(rank + turn) % n", "after round 1"),
    ],
    "many_gpus.end_of_step": [
        ("max(ready, free) + send", "ready + send", "wait until the first is sent"),
        ("max(ready, free) + send", "max(ready, free)", "still to be sent"),
        ("free = max(ready, free) + send", "free += send", "when its gradients are complete"),
        ("ready, free = forward, forward", "ready, free = 0.0, 0.0", "backward starts when forward has ended"),
        ("ready += compute", "ready = forward + sum(backward)", "after backward"),
    ],
    "many_gpus.ring_bytes": [
        ("2 * (processes - 1)", "(processes - 1)", "the sums travel around, and then the results"),
        (" / processes", "", "only a piece of 1/n"),
        ("* bytes_each", "* 4", "use bytes_each"),
    ],
    "many_gpus.mean_loss": [
        ("sum(sums) / sum(counts)", "sum(s / c for s, c in zip(sums, counts)) / len(sums)", "mean of the ranks' means"),
        ("sum(counts)", "len(counts)", "not of ranks"),
    ],
    "many_gpus.state_bytes": [
        ("stage >= 1", "stage >= 2", "in stage 1"),
        ("averages = 8", "averages = 4", "in stage 0"),
        ("8 / (gpus if stage >= 1 else 1)", "8 / (gpus if stage >= 2 else 1)", "in stage 1"),
        ("gpus if", "8 if", "on 5 GPUs"),
    ],
    "fineweb.sentence_lines": [
        (" if line.strip()]", "]", "empty lines are counted"),
        ("line.strip() for line", "line for line", "Take spaces away"),
        (", '\"', \"'\")", ")", "closing quote are missed"),
        (" / max(1, len(lines))", "", "divide by the number of lines"),
        ("max(1, len(lines))", "len(lines)", "at least 1"),
    ],
    "fineweb.leaked": [
        ('" ".join(text.lower().split()) for text in train', "text for text in train", "it should be 3"),
        ('" ".join(text.lower().split())', "text", "equal to the letter"),
        ('" ".join(text.lower().split())', '"".join(text.lower().split())', "must not vanish"),
        ('" ".join(text.lower().split()) in known', 'text.lower() in "".join(known)', "compare whole ones"),
        (
            'sum(" ".join(text.lower().split()) in known for text in val)',
            'len({" ".join(text.lower().split()) for text in val} & known)',
            "count documents",
        ),
    ],
    "fineweb.similarity_at": [
        (
            "(1 / buckets)  # one bucket misses the pair\n    return (1 - missed) ** (1 / hashes)",
            "(1 / hashes)\n    return (1 - missed) ** (1 / buckets)",
            "exchanged",
        ),
        ("return (1 - missed) ** (1 / hashes)", "return 1 - missed", "take the root"),
        ("return (1 - missed) ** (1 / hashes)", "return (1 / buckets) ** (1 / hashes)", "rule of thumb"),
        ("(1 - missed) **", "missed **", "subtract from 1"),
        ("(1 - chance) **", "chance **", "1 - chance"),
    ],
    "fineweb.go_on_from": [
        ("break", "continue", "Stop at the first that is missing"),
        (
            'if record["name"] not in there:\n            break\n        place = record["reached"]',
            'place = record["reached"]\n        if record["name"] not in there:\n            break',
            "has to be made again",
        ),
        ("place = [0, 0]", 'place = records[0]["reached"]', "should be [0, 0]"),
        ("for record in records:", "for record in records[:-1]:", "last but one"),
    ],
    "evaluation.bits_of": [
        (" / math.log(2)", "", "nats per byte"),
        ("sizes[targets].sum()", "len(targets)", "bits per token"),
        ("losses.sum()", "losses.mean()", "the sum of the losses, not their mean"),
        ("losses.sum()", "losses[sizes[targets] > 0].sum()", "leaves out the token without bytes"),
        ("sizes[targets].sum()", "sizes.sum()", "the whole vocabulary"),
    ],
    "evaluation.mean_loss": [
        ("((means * counts).sum() / counts.sum())", "means.mean()", "mean of the means"),
        (" / counts.sum()", "", "sum of all losses"),
        ("counts.sum()", "len(counts)", "number of parts"),
    ],
    "evaluation.ending_means": [
        (" & (place < context + lengths[:, None])", "", "padding is scored"),
        ("torch.arange(1, tokens.size(1))", "torch.arange(tokens.size(1) - 1)", "shifted by one"),
        (" / lengths", "", "these are sums"),
        ("place >= context", "place > context", "first token of each ending is missing"),
        ("logits[:, :-1]", "logits[:, 1:]", "at its own place"),
    ],
    "evaluation.items_needed": [
        (
            "math.ceil(variance * (errors / (q - p)) ** 2)",
            "math.ceil(math.sqrt(variance) * errors / (q - p))",
            "so square it",
        ),
        (" + q * (1 - q)", "", "both variances count"),
        ("p * (1 - p) + q", "q", "both variances count"),
        ("math.ceil", "", "no whole number"),
        (
            "variance * (",
            "(math.sqrt(p * (1 - p)) + math.sqrt(q * (1 - q))) ** 2 * (",
            "independent errors add as squares",
        ),
    ],
    "evaluation.errors_apart": [
        (" / len(baseline)", "", "each variance by its number"),
        (".sqrt()", "", "divides by a variance"),
        ("baseline.mean() - changed.mean()", "changed.mean() - baseline.mean()", "wrong sign"),
        (
            "baseline.var() / len(baseline) + changed.var() / len(changed)",
            "baseline.var() + changed.var()",
            "single runs",
        ),
    ],
    "real_run.resume": [
        ('model.load_state_dict(saved["model"])', "pass", "the saved weights"),
        ('optimizer.load_state_dict(saved["optimizer"])', "pass", "averages"),
        ('loader.load_state_dict(saved["loader"])', "pass", "other text"),
        ('torch.set_rng_state(saved["random"])', "pass", "dropout removes other values"),
    ],
    "real_run.run_cost": [
        (" / 3600", "", "as many hours as the run has seconds"),
        (" / 3600", " / 60", "3,600 seconds"),
        ("hours * dollars_per_hour", "hours", "multiply them by the price"),
        ("tokens / tokens_per_second", "tokens_per_second / tokens", "divide the tokens by the speed"),
    ],
    "real_run.one_curve": [
        (
            "        while kept and kept[-1][0] >= step:  # a restart: what came later is lost\n            kept.pop()\n",
            "",
            "twice",
        ),
        ("return kept", "return sorted(dict(zip(steps, losses)).items())", "step 5 was lost"),
        ("return kept", "return sorted(dict(zip(steps[:5], losses[:5])).items())", "replaced it"),
    ],
    "real_run.removable": [
        ("reverse=True", "reverse=False", "one of the newest two"),
        ("if not (keep_every and step % keep_every == 0)", "", "1,000 divides it"),
        ("sorted(step for step in older", "list(step for step in older", "in order"),
    ],
    "real_run.lost_fraction": [
        ("(interval / 2)", "interval", "half an interval"),
        ("saving + failing", "saving", "failures lose something too"),
        ("saving + failing", "failing", "every save takes time too"),
        ("cost / interval", "cost / (interval + cost)", "per second of training"),
        (" / between", " / 10_000", "every 5,000 s"),
    ],
}


def exercises() -> dict[str, tuple[str, str]]:
    """Checker → the stub and the solution, as the notebooks have them."""
    found = {}
    for path in find():
        cells = read(path).cells
        for cell, following in itertools.pairwise(cells):
            if "exercise" in cell.metadata.get("tags", []):
                name = re.search(r"^checks\.(\w+\.\w+)\(", cell.source, re.MULTILINE)[1]
                solution = re.search(r"<details>.*?```python\n(.*?)```", following.source, re.DOTALL)[1]
                found[name] = (cell.source, solution)
    return found


EXERCISES = exercises()


def told(name: str, source: str, capsys: pytest.CaptureFixture) -> str:
    """What the reader sees who types `source` in place of the stub."""
    stub = EXERCISES[name][0]
    call = re.search(r"^checks\.\w+\.\w+\(.*", stub, re.MULTILINE | re.DOTALL)[0]
    torch.manual_seed(0)
    names = {"math": math, "np": np, "torch": torch, "nn": nn, "F": F, "checks": checks}
    exec(f"{source}\n{call}", names)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right_and_the_stub_waits(name, capsys):
    stub, solution = EXERCISES[name]
    assert told(name, solution, capsys) == "Right.\n"
    assert told(name, stub.split("\nchecks.")[0], capsys).startswith("Your turn")


@pytest.mark.parametrize("name", EXERCISES)
def test_typical_mistakes_are_told_in_words(name, capsys):
    solution = EXERCISES[name][1]
    assert len(MISTAKES[name]) >= 2
    for right, wrong, words in MISTAKES[name]:
        assert right in solution
        answer = told(name, solution.replace(right, wrong), capsys)
        assert answer.startswith("Not yet") and words in answer, answer


@pytest.mark.parametrize("name", EXERCISES)
def test_code_that_returns_nothing_or_stops_is_told_so(name, capsys):
    function = re.search(r"^def (\w+)", EXERCISES[name][1], re.MULTILINE)[1]
    assert told(name, f"def {function}(*_, **__): pass", capsys).startswith("Not yet")
    answer = told(name, f"def {function}(*_, **__): return [][1]", capsys)
    assert answer.startswith("Not yet: it stopped with IndexError")


def test_the_end_of_a_notebook_says_which_exercises_are_solved(capsys, monkeypatch):
    monkeypatch.setattr(checks, "_last_results", {})

    def wrong(solution):
        raise checks.Wrong("off by one")

    def one(solution):
        solution()

    one_tells, wrong_tells = checks.exercise(one), checks.exercise(wrong)
    checks.solved()
    one_tells(not_yet)
    wrong_tells(None)
    checks.solved()
    one_tells(lambda: None)  # the last call counts
    checks.solved()
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("Solved")] == [
        "Solved: 0 of 0.",
        "Solved: 0 of 2. Wrong: wrong. Open: one.",
        "Solved: 1 of 2. Wrong: wrong.",
    ]


def not_yet():
    raise NotImplementedError


def test_the_alternative_text_of_a_figure_says_its_titles_and_axes():
    figure, (left, right) = plt.subplots(1, 2)
    figure.suptitle("Loss falls")
    left.set(title="early\nsteps", xlabel="step", ylabel="loss")
    right.set_title("late steps.", loc="left")
    assert checks.titles(figure) == "Loss falls. early steps. late steps. Axes: loss over step."
    plt.close(figure)
