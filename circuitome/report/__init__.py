"""A run as one self-contained HTML page, and its figures as SVG."""

from circuitome.report.figures import circuit_svg as circuit_svg
from circuitome.report.figures import curve_svg as curve_svg
from circuitome.report.html import render as render
from circuitome.report.pages import page as page
from circuitome.report.payload import compare_payload as compare_payload
from circuitome.report.payload import effects_payload as effects_payload
from circuitome.report.payload import graph_of as graph_of
from circuitome.report.payload import payload as payload
from circuitome.report.payload import strongest_edges as strongest_edges
from circuitome.report.payload import verdict_payload as verdict_payload
from circuitome.report.routes_page import routes_payload as routes_payload
from circuitome.report.routes_page import trace_payload as trace_payload
