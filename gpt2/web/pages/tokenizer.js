// GPT-2's byte-pair encoding, as gpt2/data/tokenizer.py has it. Built in lesson 01.
//
// A token is a string of bytes here: one character per byte, U+0000 to U+00FF. Its id is also its rank: the first 256
// are the bytes, each further one was made by one merge, and <|endoftext|> is the last.

export const END_OF_TEXT = "<|endoftext|>";
const BYTES = 256;
// What is never merged across: contractions, words, numbers, punctuation, white space. \p{White_Space} and not \s,
// in which JavaScript counts U+FEFF but not U+0085.
const PATTERN =
  /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?=\p{White_Space}|$)|\p{White_Space}/gu;

export class Tokenizer {
  /** Of all tokens in order, but for the end of text, as byte strings. */
  constructor(tokens) {
    this.tokens = tokens;
    this.ranks = new Map(tokens.map((token, rank) => [token, rank]));
    this.endOfText = tokens.length;
  }

  /** Text → ids. Half of a surrogate pair becomes U+FFFD. */
  encode(text) {
    const ids = [];
    for (const [piece] of text.matchAll(PATTERN)) {
      for (const token of this.merge(toBytes(piece))) ids.push(this.ranks.get(token));
    }
    return ids;
  }

  /**
   * A byte string → the tokens that are left when no two neighbours can be merged, the lowest rank first.
   *
   * `onMerge(left, right, rank)` is called for every merge.
   */
  merge(bytes, onMerge = null) {
    const whole = this.ranks.get(bytes);
    if (whole !== undefined && !onMerge) return [bytes]; // a word that is a token
    const parts = [...bytes];
    const rankAt = (i) => this.ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
    const ranks = parts.slice(1).map((_, i) => rankAt(i)); // of each pair of neighbours
    while (ranks.length) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (ranks[best] === Infinity) break;
      onMerge?.(parts[best], parts[best + 1], ranks[best]);
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      if (best > 0) ranks[best - 1] = rankAt(best - 1);
      if (best < ranks.length) ranks[best] = rankAt(best);
    }
    return parts;
  }

  /** The merges that made a token, in order: byte strings `left` and `right`, and the `number` of the merge from 1. */
  history(id) {
    const merges = [];
    if (id < this.endOfText) {
      this.merge(this.tokens[id], (left, right, rank) => merges.push({ left, right, number: rank - BYTES + 1 }));
    }
    return merges;
  }

  /** The bytes of a token; <|endoftext|> has none. */
  bytes(id) {
    return Uint8Array.from(this.tokens[id] ?? "", (character) => character.charCodeAt(0));
  }

  /** Ids → text. Bytes that are no UTF-8 become U+FFFD. */
  decode(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const text = ids.map((id) => (id < this.endOfText ? decoder.decode(this.bytes(id), { stream: true }) : END_OF_TEXT));
    return text.join("") + decoder.decode();
  }

  /** A token as it is printed alone. */
  shown(id) {
    return id < this.endOfText ? shownBytes(this.tokens[id]) : END_OF_TEXT;
  }
}

/** Text → the bytes of its UTF-8, as a byte string. */
function toBytes(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** A byte string as it is printed: ␣ for a space, ⏎ for a line break, and hexadecimal for what is no character alone. */
export function shownBytes(bytes) {
  const codes = Uint8Array.from(bytes, (character) => character.charCodeAt(0));
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(codes);
    return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replace(/[\p{C}\p{Z}]/gu, codePoint);
  } catch {
    return Array.from(codes, hex).join(" ");
  }
}

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** A byte in hexadecimal: 10 → "0A". */
export const hex = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
