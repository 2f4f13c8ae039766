/* How many edges a frame takes, so that frames stay short: from how long those before took. */
const START = 400;
const [FEWEST, MOST] = [60, 1500];
const [FAST, SLOW] = [20, 30]; // milliseconds

export class Pace {
  private quota = START;
  private last = 0;

  /* Edges for the frame that begins now. Strokes are drawn after the script, so that only the next frame tells. */
  take(): number {
    const now = performance.now();
    const took = now - this.last;
    if (took > SLOW && took < 2000) this.quota = Math.max(FEWEST, this.quota / 2);
    else if (took < FAST) this.quota = Math.min(MOST, this.quota * 1.1);
    this.last = now;
    return Math.round(this.quota);
  }
}
