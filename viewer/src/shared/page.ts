/* What the script of every page (page.js) gives: labels under the pointer, copying, figures as files. */
export type Standalone = { text: string; width: number; height: number };

type Page = {
  showTip(words: string, x: number, y: number): void;
  hideTip(): void;
  announce(words: string): void;
  copy(words: string, button: HTMLElement): Promise<void>;
  save(blob: Blob, name: string): void;
  slug(words: string): string;
  standalone(svg: SVGSVGElement): Standalone;
  raster(drawing: Standalone): Promise<Blob>;
};

export const { showTip, hideTip, announce, copy, save, slug, standalone, raster } = globalThis as unknown as Page;
