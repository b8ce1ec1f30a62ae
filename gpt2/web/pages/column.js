// Numbers that grow at the end.

// the first index whose value is not below x, in the first n values
export function lowerBound(values, n, x) {
  let low = 0, high = n;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The numbers, and their running sums, from which the mean over any window follows at once.
export class Column {
  constructor() {
    this.n = 0;
    this.values = new Float64Array(1024);
    this.summed = 0;
  }

  // Replace what stands from `from` on.
  put(from, numbers) {
    this.n = from + numbers.length;
    if (this.n > this.values.length) {
      const larger = new Float64Array(2 * this.n);
      larger.set(this.values.subarray(0, from));
      this.values = larger;
    }
    this.values.set(numbers, from);
    this.summed = Math.min(this.summed, from);
  }

  // The mean of the numbers that are finite, over `window` of them around i.
  mean(i, window) {
    this.#sum();
    const from = Math.max(0, i - (window >> 1)), to = Math.min(this.n, i - (window >> 1) + window);
    return (this.sums[to] - this.sums[from]) / (this.finite[to] - this.finite[from]);
  }

  #sum() {
    if (this.summed === this.n && this.sums) return;
    if (!this.sums || this.sums.length <= this.n) {
      for (const name of ["sums", "finite"]) {
        const larger = new Float64Array(this.values.length + 1);
        if (this[name]) larger.set(this[name].subarray(0, this.summed + 1));
        this[name] = larger;
      }
    }
    for (let i = this.summed; i < this.n; i++) {
      const known = Number.isFinite(this.values[i]);
      this.sums[i + 1] = this.sums[i] + (known ? this.values[i] : 0);
      this.finite[i + 1] = this.finite[i] + (known ? 1 : 0);
    }
    this.summed = this.n;
  }
}
