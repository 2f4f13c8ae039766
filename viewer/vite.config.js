/* Scripts without imports, which the package carries: of the app, and with --mode report that of reports. */
import { defineConfig } from "vite";

const SCRIPTS = { production: ["src/main.tsx", "app.js"], report: ["src/report.tsx", "report.js"] };

export default defineConfig(({ mode }) => {
  const [entry, file] = SCRIPTS[mode];
  return {
    esbuild: { jsx: "automatic", jsxImportSource: "preact" },
    define: { "process.env.NODE_ENV": '"production"' },
    build: {
      outDir: "../circuitome/present/assets",
      emptyOutDir: false,
      target: "es2022",
      lib: { entry, formats: ["iife"], name: `circuitome_${file.split(".")[0]}`, fileName: () => file },
    },
  };
});
