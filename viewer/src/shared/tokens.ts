/* Tokens as they can be seen. */
export const shown = (token: string) => token.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/^ /, "\u00b7") || "\u2205";
