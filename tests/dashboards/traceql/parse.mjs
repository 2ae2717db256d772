// Reads a JSON array of TraceQL queries, writes for each the nodes of its tree: name, text, error.
import { readFileSync } from "node:fs";
import { parser } from "@grafana/lezer-traceql";

const queries = JSON.parse(readFileSync(0, "utf8"));
const trees = queries.map((query) => {
  const nodes = [];
  parser.parse(query).iterate({
    enter: (node) => {
      nodes.push({
        name: node.type.name,
        text: query.slice(node.from, node.to),
        error: node.type.isError,
      });
    },
  });
  return nodes;
});
process.stdout.write(JSON.stringify(trees));
