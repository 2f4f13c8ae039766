/* One script without imports, which the package carries. */
export default {
  esbuild: { jsx: "automatic", jsxImportSource: "preact" },
  build: {
    outDir: "../circuitome/present/assets",
    emptyOutDir: false,
    target: "es2022",
    lib: { entry: "src/main.tsx", formats: ["iife"], name: "circuitomeApp", fileName: () => "app.js" },
  },
};
