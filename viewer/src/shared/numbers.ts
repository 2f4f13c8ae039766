/* Numbers as the rest of the page writes them. */
export type Num = number | null;

const MINUS = "\u2212";

export const count = (value: number) => value.toLocaleString("en-US");

/* With so many decimals; what would round to zero in powers of ten. */
export function fixed(value: Num | undefined, decimals: number): string {
  if (value == null) return "n/a";
  const tiny = value !== 0 && Math.abs(value) < 0.5 * 10 ** -decimals;
  return (tiny ? value.toExponential(1) : value.toFixed(decimals)).replaceAll("-", MINUS);
}

export const interval = (low: Num | undefined, high: Num | undefined, decimals: number) =>
  low == null || high == null ? "" : `[${fixed(low, decimals)}, ${fixed(high, decimals)}]`;

/* Colour of an effect by its sign, as a class and as the name of a variable of the page. */
export const sign = (value: Num | undefined) => ((value ?? 0) > 0 ? "hurts" : "helps");
